package main

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

// described is what git describe --tags --always --dirty prints where there is a tag: v1.2.3-rc.1-5-gabc1234-dirty.
const described = `^v?([0-9]+(?:\.[0-9]+)*)(?:-([0-9A-Za-z.]+))??(?:-([0-9]+)-(g[0-9a-f]+))?(-dirty)?$`

// packageVersion makes a version of a package of what git says, legal for dpkg (deb-version(7)) and for rpm, and newer
// for both the newer the commit is: a pre-release is before its release (~), commits after a tag come after it (+).
// Without a tag it is before any, and the time of the commit decides.
func packageVersion(git string, commit time.Time) (string, error) {
	if m := regexp.MustCompile(described).FindStringSubmatch(git); m != nil && !regexp.MustCompile(`^[0-9a-f]{7,}(-dirty)?$`).MatchString(git) {
		version := m[1]
		if m[2] != "" {
			version += "~" + m[2]
		}
		if m[3] != "" {
			version += "+" + m[3] + "." + m[4]
		}
		if m[5] != "" {
			version += "+dirty"
		}
		return version, nil
	}
	hash, dirty := strings.CutSuffix(git, "-dirty")
	if !regexp.MustCompile(`^[0-9a-f]{7,40}$`).MatchString(hash) {
		return "", fmt.Errorf("understand the version %q: want a tag such as v1.2.3, what git describe makes of one, or a commit", git)
	}
	version := "0~" + commit.UTC().Format("20060102150405") + ".g" + hash
	if dirty {
		version += "+dirty"
	}
	return version, nil
}
