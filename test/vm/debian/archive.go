package debian

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// listsAge is how old the lists of packages may grow before they are fetched again.
const listsAge = 24 * time.Hour

// keyring has the keys of every release that we use. Its package is debian-archive-keyring, also on Ubuntu.
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// Archive gives packages of Debian. Its methods are not safe for concurrent use of one suite.
type Archive struct {
	Dir    string // the cache: lists and unpacked packages are kept below it
	Arch   string // Debian's name of the architecture, as amd64
	Mirror Mirror
	Log    io.Writer // what is being fetched
}

// Request names packages.
type Request struct {
	// Suites are the releases to take them from, as bullseye and bullseye-security. If the last one is a backports suite,
	// it is preferred.
	Suites []string
	// Packages are fetched together with all that they depend on, without what they recommend.
	Packages []string
	// Keep leaves out dependencies for which it returns false; nil keeps all.
	Keep func(name string) bool
	// Key is what the name of the package begins with whose name and version are the cache's key.
	Key string
	// Variant tells two requests with one Key and Suites apart, whose Packages differ. It is a part of a file's name.
	Variant string
}

// Tree is where packages were unpacked, with no script of theirs run.
type Tree struct {
	Dir     string
	Version string // of the package Key
}

// find returns the package whose name begins with the key.
func find(packages []pkg, key string) (pkg, bool) {
	for _, p := range packages {
		if strings.HasPrefix(p.name, key) {
			return p, true
		}
	}
	return pkg{}, false
}

// Fetch returns the newest version of packages that their suites have, unpacked. It works without a network if the cache
// has them, and says on Log that it could not look for newer ones.
func (a Archive) Fetch(ctx context.Context, r Request) (Tree, error) {
	s := suite{a, r, filepath.Join(a.Dir, "apt", strings.Join(r.Suites, "+")+"_"+a.Arch)}
	if err := s.refresh(ctx); err != nil {
		return Tree{}, fmt.Errorf("fetch the lists of %s: %w", strings.Join(r.Suites, ", "), err)
	}
	packages, err := s.resolve(ctx)
	if err != nil {
		return Tree{}, err
	}
	key, ok := find(packages, r.Key)
	if !ok {
		return Tree{}, fmt.Errorf("find %s in %s: not among %d packages", r.Key, strings.Join(r.Suites, ", "), len(packages))
	}
	// No colons: they separate directories in lists such as a linker's.
	name := strings.ReplaceAll(key.name+"_"+key.version+"_"+a.Arch, ":", "%3a")
	if r.Variant != "" {
		name += "_" + r.Variant
	}
	tree := Tree{filepath.Join(a.Dir, "packages", name), key.version}
	if _, err := os.Stat(tree.Dir); err == nil {
		return tree, nil
	}
	fmt.Fprintf(a.Log, "fetching %s %s and %d packages that it needs\n", key.name, tree.Version, len(packages)-1)
	if err := s.unpack(ctx, packages, tree.Dir); err != nil {
		return Tree{}, fmt.Errorf("fetch %s: %w", key.name, err)
	}
	return tree, nil
}

// suite is an apt of our own for the suites of one request.
type suite struct {
	Archive
	Request
	dir string
}

// options make apt use our directories and nothing of the machine's but its proxies and credentials.
func (s suite) options() []string {
	var o []string
	for _, kv := range []string{
		"Dir::State=" + s.dir,
		"Dir::State::status=" + filepath.Join(s.dir, "status"), // empty: nothing counts as installed
		"Dir::Cache=" + s.dir,
		"Dir::Etc::sourcelist=" + filepath.Join(s.dir, "sources.list"),
		"Dir::Etc::sourceparts=/dev/null",
		"Dir::Etc::preferences=/dev/null",
		"Dir::Etc::preferencesparts=/dev/null",
		"Dir::Log=" + s.dir,
		"APT::Architecture=" + s.Arch,
		"APT::Architectures=" + s.Arch,
		"APT::Sandbox::User=", // its user may not be able to write here
		"APT::Install-Recommends=false",
		"Acquire::Languages=none",
		"Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
		"Acquire::IndexTargets::deb::CNF::DefaultEnabled=false",
		"Acquire::Retries=3",
	} {
		o = append(o, "-o", kv)
	}
	return o
}

func (s suite) apt(ctx context.Context, dir string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "apt-get", append(s.options(), args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return out, fmt.Errorf("apt-get %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(exit.Stderr)))
	}
	return out, err
}

// refresh fetches the lists of packages, unless they are new enough.
func (s suite) refresh(ctx context.Context) error {
	stamp := filepath.Join(s.dir, "refreshed")
	info, err := os.Stat(stamp)
	if err == nil && time.Since(info.ModTime()) < listsAge {
		return nil
	}
	haveLists := err == nil
	for _, dir := range []string{"lists/partial", "archives/partial"} {
		if err := os.MkdirAll(filepath.Join(s.dir, dir), 0o755); err != nil {
			return err
		}
	}
	if _, err := os.Stat(keyring); err != nil {
		return fmt.Errorf("%w (Debian package debian-archive-keyring)", err)
	}
	var sources strings.Builder
	for _, name := range s.Suites {
		fmt.Fprintf(&sources, "deb [signed-by=%s] %s %s main\n", keyring, s.Mirror.at(name), name)
	}
	for name, text := range map[string]string{"status": "", "sources.list": sources.String()} {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if _, err := s.apt(ctx, s.dir, "update", "-qq", "--error-on=any"); err != nil {
		if haveLists {
			fmt.Fprintf(s.Log, "going on with the lists of %s: %v\n", info.ModTime().Format(time.DateTime), err)
			return nil
		}
		return err
	}
	return os.WriteFile(stamp, nil, 0o644)
}

// pkg is one package of a solution.
type pkg struct{ name, version string }

// resolve asks apt what would be installed on an empty machine.
func (s suite) resolve(ctx context.Context) ([]pkg, error) {
	args := []string{"install", "-qq", "--print-uris"}
	if last := s.Suites[len(s.Suites)-1]; strings.HasSuffix(last, "-backports") {
		args = append(args, "-t", last)
	}
	out, err := s.apt(ctx, s.dir, append(args, s.Packages...)...)
	if err != nil {
		return nil, err
	}
	packages, err := parseURIs(string(out))
	if err != nil {
		return nil, err
	}
	var kept []pkg
	for _, p := range packages {
		if s.Keep == nil || s.Keep(p.name) {
			kept = append(kept, p)
		}
	}
	return kept, nil
}

// parseURIs reads the output of apt-get --print-uris: 'URI' NAME_VERSION_ARCH.deb SIZE HASH, colons of versions as %3a.
func parseURIs(text string) ([]pkg, error) {
	var packages []pkg
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 || !strings.HasPrefix(fields[0], "'") {
			continue
		}
		parts := strings.Split(fields[1], "_")
		if len(parts) != 3 {
			return nil, fmt.Errorf("understand apt's answer %q: want NAME_VERSION_ARCH.deb in the second place", strings.TrimSpace(line))
		}
		packages = append(packages, pkg{parts[0], strings.ReplaceAll(parts[1], "%3a", ":")})
	}
	return packages, nil
}

// unpack downloads packages and unpacks all of them to one directory, which is there completely or not at all.
func (s suite) unpack(ctx context.Context, packages []pkg, dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".unpacking-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	debs, tree := filepath.Join(tmp, "debs"), filepath.Join(tmp, "tree")
	for _, d := range []string{debs, tree} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	args := []string{"download", "-qq"}
	for _, p := range packages {
		args = append(args, p.name+"="+p.version)
	}
	if _, err := s.apt(ctx, debs, args...); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return err
	}
	if len(files) != len(packages) {
		return fmt.Errorf("apt downloaded %d of %d packages", len(files), len(packages))
	}
	for _, file := range files {
		if out, err := exec.CommandContext(ctx, "dpkg-deb", "--extract", file, tree).CombinedOutput(); err != nil {
			return fmt.Errorf("unpack %s: %w: %s", filepath.Base(file), err, out)
		}
	}
	return os.Rename(tree, dir)
}
