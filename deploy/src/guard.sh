#!/bin/sh
# Ends what the supervisor started when the supervisor itself dies, whatever killed it: its end of our stdin closes.
# lines on stdin: "+ PGID" a process group was started, "- PGID" it has ended
trap '' INT TERM HUP
groups=" "
while read -r op group; do
  case $op in
    +) groups="$groups$group " ;;
    -) groups=$(printf '%s' "$groups" | sed "s/ $group / /") ;;
  esac
done
for group in $groups; do kill -TERM "-$group" 2>/dev/null; done
until=$(($(date +%s) + 8))
while [ "$(date +%s)" -lt $until ]; do
  alive=
  for group in $groups; do kill -0 "-$group" 2>/dev/null && alive=yes; done
  [ -z "$alive" ] && exit 0
  sleep 0.1
done
for group in $groups; do kill -KILL "-$group" 2>/dev/null; done
