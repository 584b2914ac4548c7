package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"github.com/xrash/smetrics"
)

// nearest gives the candidate that a mistyped word probably means, "" if none is near.
func nearest(word string, candidates []string) string {
	best, distance := "", 1+max(1, len(word)/3)
	if len(word) >= 3 {
		for _, c := range candidates { // cut short: --serv for --service-ips is no mistake of one letter
			if strings.HasPrefix(c, word) {
				return c
			}
		}
	}
	for _, c := range candidates {
		d := smetrics.WagnerFischer(word, c, 1, 1, 1)
		if sameLetters(word, c) {
			d = min(d, 1) // letters that changed places
		}
		if d < distance {
			best, distance = c, d
		}
	}
	return best
}

func sameLetters(a, b string) bool {
	x, y := []byte(a), []byte(b)
	slices.Sort(x)
	slices.Sort(y)
	return string(x) == string(y)
}

// didYouMean is the start of a hint about an unknown word.
func didYouMean(word string) string {
	if word == "" {
		return ""
	}
	return fmt.Sprintf("did you mean %s? ", word)
}

func flagNames(flags []cli.Flag) []string {
	names := []string{"help"}
	for _, f := range flags {
		for _, name := range f.Names() {
			if len(name) > 1 {
				names = append(names, name)
			}
		}
	}
	return names
}
