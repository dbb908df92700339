"""`nacre completion`: scripts that ask `nacre __complete` (nacre.cli.complete) for everything."""

from __future__ import annotations

from nacre.cli.context import Context
from nacre.cli.flags import Arguments, Command, UsageError

_BASH = r"""# bash completion for nacre. Load it with: source <(nacre completion bash)
_nacre() {
    local line word prefix
    COMPREPLY=()
    # Words as the user sees them: bash itself would split image:tag at the colon.
    local -a words
    read -r -a words <<< "${COMP_LINE:0:COMP_POINT}"
    [[ ${COMP_LINE:0:COMP_POINT} == *[[:space:]] ]] && words+=("")
    word=${words[${#words[@]}-1]}
    while IFS=$'\t' read -r line _; do
        if [[ $line == :files ]]; then
            compopt -o filenames 2>/dev/null
            while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen -f -- "${word##*[:=]}")
        elif [[ $line == "$word"* ]]; then
            COMPREPLY+=("$line")
        fi
    done < <("${words[0]}" __complete "${words[@]:1}" 2>/dev/null)
    # Readline replaces only what is behind the last colon or equals sign.
    if [[ $word == *[:=]* && $COMP_WORDBREAKS == *:* ]]; then
        prefix=${word%"${word##*[:=]}"}
        COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
    fi
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *: ]] && compopt -o nospace 2>/dev/null
    return 0
}
complete -F _nacre nacre
"""

_ZSH = r"""#compdef nacre
# zsh completion for nacre. Load it with: source <(nacre completion zsh)
_nacre() {
    local line value files=0
    local -a values shown
    while IFS= read -r line; do
        if [[ $line == :files ]]; then
            files=1
            continue
        fi
        value=${line%%$'\t'*}
        values+=("$value")
        [[ $line == *$'\t'* ]] && shown+=("$value -- ${line#*$'\t'}") || shown+=("$value")
    done < <("${words[1]}" __complete "${(@)words[2,CURRENT]}" 2>/dev/null)
    (( ${#values} )) && compadd -l -d shown -a values
    (( files )) && _files
    return 0
}
compdef _nacre nacre
"""

_FISH = r"""# fish completion for nacre. Load it with: nacre completion fish | source
function __nacre_complete
    set -l words (commandline -opc) (commandline -ct)
    for line in ($words[1] __complete $words[2..-1] 2>/dev/null)
        if test "$line" = ":files"
            __fish_complete_path (commandline -ct)
        else
            echo $line
        end
    end
end
complete -c nacre -f -a "(__nacre_complete)"
"""

SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def run(ctx: Context, args: Arguments) -> int:
    """`nacre completion`."""
    script = SCRIPTS.get(args.rest[0])
    if script is None:
        raise UsageError(f"no completion for shell {args.rest[0]!r}", hint=f"One of {', '.join(SCRIPTS)}.")
    ctx.out(script, end="")
    return 0


COMMANDS = {
    "completion": Command(
        run,
        "bash|zsh|fish",
        least=1,
        most=1,
        complete="shells",
        examples=(
            ("completion bash > /etc/bash_completion.d/nacre", "For every bash on this machine"),
            ("completion fish > ~/.config/fish/completions/nacre.fish", "For your fish"),
        ),
    ),
}
