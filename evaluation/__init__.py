"""Which pixels count, in which scale and for which camera: metrics, inference at the image's size, Table IV."""
