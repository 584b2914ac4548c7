package main

import (
	"fmt"
	"strings"
	"time"
)

// manPage fills the frame with what the program says of itself, in the macros of man(7).
func manPage(frame string, top Command, commands []Command, version string, date time.Time) (string, error) {
	var list, common strings.Builder
	groups := map[string]map[string]bool{}
	var order []string // of categories
	options := map[string][]Option{}
	for _, c := range commands {
		fmt.Fprintf(&list, ".SS %s\n", roff(strings.TrimSpace(c.Name+" "+c.Arguments)))
		fmt.Fprintf(&list, "%s.\n", roff(sentence(c.Usage)))
		for _, p := range c.Description {
			fmt.Fprintf(&list, ".PP\n%s\n", roff(p))
		}
		var shared []string
		for _, o := range c.Options {
			if o.Category == "" {
				list.WriteString(tagged(o))
				continue
			}
			shared = append(shared, o.Name())
			if groups[o.Category] == nil {
				groups[o.Category] = map[string]bool{}
				order = append(order, o.Category)
			}
			if !groups[o.Category][o.Name()] {
				groups[o.Category][o.Name()] = true
				options[o.Category] = append(options[o.Category], o)
			}
		}
		if len(shared) > 0 {
			fmt.Fprintf(&list, ".PP\nCommon options: %s.\n", roff(strings.Join(shared, ", ")))
		}
	}
	for _, category := range order {
		fmt.Fprintf(&common, ".SS %s\n", roff(category))
		for _, o := range options[category] {
			common.WriteString(tagged(o))
		}
	}
	var description []string
	for _, p := range top.Description {
		description = append(description, roff(p))
	}
	page := strings.NewReplacer(
		"@DATE@", date.Format(time.DateOnly), "@VERSION@", roff(version), "@USAGE@", roff(top.Usage),
		"@DESCRIPTION@", strings.Join(description, "\n.PP\n"),
		"@COMMANDS@", strings.TrimSuffix(list.String(), "\n"), "@COMMON@", strings.TrimSuffix(common.String(), "\n"),
	).Replace(frame)
	if i := strings.Index(page, "@"); i >= 0 {
		return "", fmt.Errorf("fill the frame of the man page: %q is left", page[i:min(i+12, len(page))])
	}
	return page, nil
}

func tagged(o Option) string {
	return fmt.Sprintf(".TP\n.B %s\n%s.\n", roff(o.Names), roff(sentence(o.Usage)))
}

// sentence begins a text as a sentence does, unless it begins with a name.
func sentence(text string) string {
	text = strings.TrimSuffix(text, ".")
	if first, _, _ := strings.Cut(text, " "); first == strings.ToLower(first) && !strings.ContainsAny(first, "2") {
		return strings.ToUpper(text[:1]) + text[1:]
	}
	return text
}

// roff makes text that troff prints as it is: lines that begin with a dot or an apostrophe are requests otherwise, and a
// plain - is a hyphen, which can't be copied to a command line.
func roff(text string) string {
	var b strings.Builder
	for i, line := range strings.Split(text, "\n") {
		if i > 0 {
			b.WriteByte('\n')
		}
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			b.WriteString(`\&`)
		}
		for _, r := range line {
			switch {
			case r == '\\':
				b.WriteString(`\e`)
			case r == '-':
				b.WriteString(`\-`)
			case r == '@':
				b.WriteString(`\(at`)
			case r > 126:
				fmt.Fprintf(&b, `\[u%04X]`, r)
			default:
				b.WriteRune(r)
			}
		}
	}
	return b.String()
}
