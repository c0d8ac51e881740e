# shellcheck shell=bash

# require_space FOLDER GIB FILES WHAT: tell what is about to be written and what room there is; exit when it is too little.
require_space() {
    local folder=$1 gib=$2 files=$3 what=$4 there free inodes
    there=$folder
    while [ ! -d "$there" ]; do there=$(dirname "$there"); done
    read -r free inodes < <(df --output=avail,iavail -B1M "$there" | tail -1)
    echo "$what: about $gib GiB in $files files below $folder; free there: $((free / 1024)) GiB, $inodes inodes"
    # file systems without a limit on files tell 0 or -
    if ((free < gib * 1024)) || { [[ $inodes =~ ^[1-9] ]] && ((inodes < files)); }; then
        echo "error: too little room in $there: remove what is done with, or set SCRATCH to another folder" >&2
        exit 2
    fi
}
