package kernel

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Version is a mainline kernel version. The zero value means "unknown".
type Version struct {
	Major, Minor, Patch int
}

// Compare returns -1, 0 or +1 as v is before, at or after w.
func (v Version) Compare(w Version) int {
	return compareNumbers([]int{v.Major, v.Minor, v.Patch}, []int{w.Major, w.Minor, w.Patch})
}

// IsZero tells whether the version is unknown.
func (v Version) IsZero() bool { return v == Version{} }

// String gives "5.4.44", and "5.4" for a patch level of zero: that is how
// kernel.org names the first release of a series.
func (v Version) String() string {
	if v.Patch == 0 {
		return fmt.Sprintf("%d.%d", v.Major, v.Minor)
	}
	return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch)
}

// MarshalText writes the version as String does; an unknown one is empty.
func (v Version) MarshalText() ([]byte, error) {
	if v.IsZero() {
		return nil, nil
	}
	return []byte(v.String()), nil
}

// UnmarshalText reads what MarshalText writes.
func (v *Version) UnmarshalText(text []byte) error {
	*v = Version{}
	if len(text) == 0 {
		return nil
	}
	release, err := ParseRelease(string(text))
	if err != nil {
		return err
	}
	*v = release.Version
	return nil
}

// Release is what `uname -r` says, taken apart.
type Release struct {
	Text    string  `json:"text"`              // as the kernel gives it
	Version Version `json:"version"`           // the first three numbers; Debian and Ubuntu leave the patch level at 0, see Host.Mainline
	Extra   []int   `json:"extra,omitempty"`   // numbers after the third: WSL's 5.15.90.1 has [1]
	RC      int     `json:"rc,omitempty"`      // 3 for -rc3; 0 for a release
	Build   []int   `json:"build,omitempty"`   // the distributor's build: [193 1 2] for 4.18.0-193.1.2.el8_2, [42] for 5.4.0-42-generic
	Flavour string  `json:"flavour,omitempty"` // generic, el8, el8uek, amzn2, cloud-amd64, gke …
	Local   string  `json:"local,omitempty"`   // what stands behind a plus sign: deb13, rpt, debug
	EL      int     `json:"el,omitempty"`      // 8 for .el8, .el8_2 and .el8uek: the Enterprise Linux that it is built for
	ELMinor int     `json:"el_minor,omitempty"`
	UEK     bool    `json:"uek,omitempty"` // Oracle's Unbreakable Enterprise Kernel: near mainline, not RHEL's kernel
}

// errRelease is the start of every error of the parsers below.
var errRelease = errors.New("not a kernel release")

// maxRelease is the longest release that uname(2) can give (__NEW_UTS_LEN).
const maxRelease = 64

// ParseRelease takes apart the output of `uname -r`. It is exact about what
// is a number and what is a name, and never guesses a missing version.
func ParseRelease(s string) (Release, error) {
	if len(s) > maxRelease {
		return Release{}, fmt.Errorf("parse %.20q…: %w: longer than %d bytes", s, errRelease, maxRelease)
	}
	for _, c := range []byte(s) {
		if c <= ' ' || c > '~' {
			return Release{}, fmt.Errorf("parse %q: %w: it holds a blank or an unprintable byte", s, errRelease)
		}
	}
	numbers, rest, err := leadingNumbers(s)
	if err != nil {
		return Release{}, fmt.Errorf("parse %q: %w: %w", s, errRelease, err)
	}
	if len(numbers) < 2 {
		return Release{}, fmt.Errorf("parse %q: %w: want at least major.minor", s, errRelease)
	}
	if rest != "" && !strings.ContainsRune("-+._~", rune(rest[0])) {
		return Release{}, fmt.Errorf("parse %q: %w: %q follows the version", s, errRelease, rest)
	}
	r := Release{Text: s, Version: Version{Major: numbers[0], Minor: numbers[1]}}
	if len(numbers) > 2 {
		r.Version.Patch = numbers[2]
	}
	if len(numbers) > 3 {
		r.Extra = numbers[3:]
	}
	if err := r.parseSuffix(rest); err != nil {
		return Release{}, err
	}
	return r, nil
}

// leadingNumbers reads "5.15.90.1" off the front of s.
func leadingNumbers(s string) (numbers []int, rest string, err error) {
	for {
		digits := countDigits(s)
		if digits == 0 {
			return numbers, s, nil
		}
		n, err := strconv.Atoi(s[:digits])
		if err != nil || n > 1<<30 {
			return nil, "", fmt.Errorf("the number %s is too large", s[:digits])
		}
		numbers, s = append(numbers, n), s[digits:]
		if len(s) < 2 || s[0] != '.' || countDigits(s[1:]) == 0 {
			return numbers, s, nil
		}
		s = s[1:]
	}
}

func countDigits(s string) int {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}

// parseSuffix reads everything behind the version: -rc, build numbers,
// a local part behind a plus sign, and the flavour.
func (r *Release) parseSuffix(s string) error {
	// Debian puts its release before the flavour (6.12.107+deb13-cloud-amd64),
	// RHEL a variant behind everything (5.14.0-427.el9.x86_64+rt).
	if i := strings.IndexByte(s, '+'); i >= 0 {
		local, after, _ := strings.Cut(s[i+1:], "-")
		r.Local = local
		s = s[:i]
		if after != "" {
			s += "-" + after
		}
	}
	var names []string
	for i, field := range splitFields(s) {
		if n, ok := rcNumber(field.text); ok && r.RC == 0 && i <= 1 {
			r.RC = n
			continue
		}
		n, isNumber := number(field.text)
		if len(names) == 0 && isNumber && (field.sep == '-' && len(r.Build) == 0 || field.sep == '.' && len(r.Build) > 0) {
			r.Build = append(r.Build, n)
			continue
		}
		if countDigits(field.text) == len(field.text) && !isNumber && field.text != "" {
			return fmt.Errorf("parse %q: %w: the number %s is too large", r.Text, errRelease, field.text)
		}
		if r.parseEL(field.text) {
			continue
		}
		names = append(names, string(field.sep)+field.text)
	}
	if r.EL > 0 {
		return nil // el8 says all; what is left is the machine (x86_64) or a variant
	}
	r.Flavour = strings.TrimLeft(strings.Join(names, ""), "-._~")
	for _, machine := range []string{".x86_64", ".aarch64", ".ppc64le", ".s390x", ".i686"} {
		r.Flavour = strings.TrimSuffix(r.Flavour, machine)
	}
	return nil
}

// parseEL recognises el8, el8_2, el8uek, el7a, el9_0: the %{dist} tag of an
// Enterprise Linux package.
func (r *Release) parseEL(s string) bool {
	tail, ok := strings.CutPrefix(s, "el")
	if !ok || r.EL > 0 {
		return false
	}
	digits := countDigits(tail)
	major, ok := number(tail[:digits])
	if !ok || digits > 2 {
		return false
	}
	switch suffix := tail[digits:]; {
	case suffix == "":
	case suffix == "uek":
		r.UEK = true
	case suffix[0] == '_':
		minor, ok := number(suffix[1:])
		if !ok {
			return false
		}
		r.EL, r.ELMinor, r.Flavour = major, minor, "el"+tail[:digits]
		return true
	case suffix != "a" && suffix != "ev": // el7a: RHEL 7 for arm64; el8ev: RHV
		return false
	}
	r.EL, r.Flavour = major, s
	return true
}

type field struct {
	sep  byte // the separator before the text
	text string
}

// splitFields cuts at - . and ~, keeping which one it was; an underscore
// belongs to the name (x86_64, el8_2).
func splitFields(s string) []field {
	var fields []field
	for s != "" {
		end := strings.IndexAny(s[1:], "-.~") + 1
		if end == 0 {
			end = len(s)
		}
		fields = append(fields, field{s[0], s[1:end]})
		s = s[end:]
	}
	return fields
}

func number(s string) (int, bool) {
	if s == "" || countDigits(s) != len(s) {
		return 0, false
	}
	n, err := strconv.Atoi(s)
	return n, err == nil && n <= 1<<30
}

func rcNumber(s string) (int, bool) {
	digits, ok := strings.CutPrefix(s, "rc")
	if !ok {
		return 0, false
	}
	n, ok := number(digits)
	return n, ok && n > 0
}

// compareNumbers compares build numbers part by part as numbers; a longer
// one that starts like a shorter one is later: 193 < 193.1.2 < 240.
func compareNumbers(a, b []int) int {
	for i := 0; i < len(a) && i < len(b); i++ {
		if a[i] != b[i] {
			if a[i] < b[i] {
				return -1
			}
			return 1
		}
	}
	switch {
	case len(a) < len(b):
		return -1
	case len(a) > len(b):
		return 1
	}
	return 0
}

// String gives the release as the kernel gave it.
func (r Release) String() string { return r.Text }

// AtLeast tells whether the release has everything that mainline v has by
// its version alone. A release candidate counts as before its release.
func (r Release) AtLeast(v Version) bool {
	switch r.Version.Compare(v) {
	case 0:
		return r.RC == 0
	case 1:
		return true
	}
	return false
}
