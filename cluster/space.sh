# shellcheck shell=bash

# require_space FOLDER GIB FILES WHAT: print the required and the free disk space; exit if there is too little.
require_space() {
    local folder=$1 gib=$2 files=$3 what=$4 existing free inodes
    existing=$folder
    while [ ! -d "$existing" ]; do existing=$(dirname "$existing"); done
    read -r free inodes < <(df --output=avail,iavail -B1M "$existing" | tail -1)
    echo "$what: about $gib GiB in $files files below $folder; free: $((free / 1024)) GiB, $inodes inodes"
    # file systems without a limit on inodes report 0 or -
    if ((free < gib * 1024)) || { [[ $inodes =~ ^[1-9] ]] && ((inodes < files)); }; then
        echo "error: not enough disk space in $existing: free some, or set SCRATCH to another folder" >&2
        exit 2
    fi
}
