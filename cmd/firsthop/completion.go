package main

import (
	"fmt"
	"io"

	"github.com/urfave/cli/v2"
)

// The scripts ask the program itself (--generate-bash-completion), so they
// don't grow old. They ask about "-" where "--" stands, after which the flag
// package takes no more flags.
const (
	bashCompletion = `# bash completion for firsthop: source <(firsthop completion bash)
_firsthop() {
	local cur=${COMP_WORDS[COMP_CWORD]} words=("${COMP_WORDS[@]:0:COMP_CWORD}")
	case $cur in --) words+=(-) ;; -*) words+=("$cur") ;; esac
	COMPREPLY=($(compgen -W "$("${words[@]}" --generate-bash-completion 2>/dev/null)" -- "$cur"))
	[[ ${#COMPREPLY[@]} -eq 0 ]] && COMPREPLY=($(compgen -f -- "$cur"))
}
complete -F _firsthop firsthop
`
	zshCompletion = `#compdef firsthop
# zsh completion for firsthop: source <(firsthop completion zsh)
_firsthop() {
	local -a opts words_=("${(@)words[1,$CURRENT-1]}")
	case ${words[CURRENT]} in (--) words_+=(-) ;; (-*) words_+=("${words[CURRENT]}") ;; esac
	opts=("${(@f)$("${words_[@]}" --generate-bash-completion 2>/dev/null)}")
	if [[ -n ${opts[1]} ]]; then _describe 'values' opts; else _files; fi
}
compdef _firsthop firsthop
`
)

func completionCommand(e env) *cli.Command {
	return &cli.Command{
		Name:      "completion",
		Usage:     "print a completion script for bash, zsh or fish",
		ArgsUsage: "bash|zsh|fish",
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return usagef("completion wants one shell: bash, zsh or fish")
			}
			switch shell := c.Args().First(); shell {
			case "bash":
				return write(e.stdout, bashCompletion)
			case "zsh":
				return write(e.stdout, zshCompletion)
			case "fish":
				script, err := c.App.ToFishCompletion()
				if err != nil {
					return fmt.Errorf("make fish completion: %w", err)
				}
				return write(e.stdout, script)
			default:
				return usagef("no completion for %q: want bash, zsh or fish", shell)
			}
		},
	}
}

func write(w io.Writer, s string) error {
	_, err := io.WriteString(w, s)
	return err
}
