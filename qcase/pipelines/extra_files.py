"""`[qcase] install`: the program that puts files of a build, or of the sources, into the overlay, beside what a project installs.

Libtool leaves a script in place of each program that needs a shared library of the project:

    tests/prog        "# tests/prog - temporary wrapper script for tests/.libs/prog", paths of the folder where it was linked
    tests/.libs/prog  the program, as it is to be installed
    src/libx.la       dlname='libx.so.1', dependency_libs=… and libdir=…; the library itself is src/.libs/libx.so.1

`unwrap FILE TARGET` puts the program, and those of its libraries that the project did not install, in the place of such a script.
"""

from __future__ import annotations

from qcase.pipelines.pipeline import OVERLAY

_WRAPPER = "s/^# .* - temporary wrapper script for //p"
_UNWRAP = f"""\
wrapped_by() {{ sed -n -e '1{{/^#!/!q;}}' -e '5q' -e '{_WRAPPER}' "$1"; }}
add_library() {{
    [ -f "$1" ] || return 0
    dlname= libdir= dependency_libs=
    eval "$(grep -E "^(dlname|libdir|dependency_libs)='[^']*'$" "$1")"
    if [ -n "$dlname" ] && [ -n "$libdir" ] && [ ! -e "{OVERLAY}$libdir/$dlname" ]; then
        mkdir -p "{OVERLAY}$libdir"
        cp "${{1%/*}}/.libs/$dlname" "{OVERLAY}$libdir/"
        for other in $dependency_libs; do case $other in *.la) (add_library "$other") ;; esac; done
    fi
}}
unwrap() {{
    real=$(wrapped_by "$1")
    [ -n "$real" ] || return 0
    program=${{1%/*}}/.libs/${{1##*/}}
    linked_in=${{program%"$real"}}
    rm "$2"
    cp "$program" "$2"
    (
        IFS=' '
        notinst_deplibs=
        eval "$(grep -E "^ *notinst_deplibs='[^']*'$" "$1")"
        for library in $notinst_deplibs; do
            case $library in /*) add_library "$library" ;; *) add_library "$linked_in$library" ;; esac
        done
    )
}}
wrappers() {{ grep -rlsE '^# .* - temporary wrapper script for ' "$1" || :; }}
"""

# Files of `[qcase] install`, in the build folder or else in the sources: a folder by its name, files also by a pattern.
BESIDES = "[qcase] install"
WRAPPED = "libtool"
PROGRAM = f"""\
{_UNWRAP}
printf '%s' "$QCASE_INSTALL" | while IFS='	' read -r folder pattern; do
    stage '{BESIDES}'
    taken=
    IFS=
    for place in @BUILT@ "$PWD"; do
        for file in $place/$pattern; do
            case $pattern in *[*?[]*) [ -f "$file" ] || continue ;; *) [ -e "$file" ] || continue ;; esac
            taken=$place
            target={OVERLAY}/$folder/${{file##*/}}
            built=$file
            [ -d "$file" ] || [ -z "$(wrapped_by "$file")" ] || built=${{file%/*}}/.libs/${{file##*/}}
            if [ -e "$target" ] && ! cmp -s "$built" "$target"; then
                printf 'there are two that would be /%s\\n' "$folder/${{file##*/}}"
                exit 1
            fi
            mkdir -p "{OVERLAY}/$folder"
            cp -R "$file" "{OVERLAY}/$folder/"
            wrappers "$file" | while read -r wrapper; do unwrap "$wrapper" "$target${{wrapper#"$file"}}"; done
        done
        [ -z "$taken" ] || break
    done
    if [ -z "$taken" ]; then
        printf 'nothing that was built fits %s\\n' "$pattern"
        exit 1
    fi
done
wrappers {OVERLAY} | while read -r file; do
    if [ -n "$(wrapped_by "$file")" ]; then
        stage '{WRAPPED}'
        printf '/%s is a script that stands in for the program, and works in the build folder alone\\n' "${{file#{OVERLAY}/}}"
        exit 1
    fi
done
"""
