package apiserver

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/firsthop/firsthop/mounts/hostfs"
	"github.com/firsthop/firsthop/natinit/instance"
)

const (
	cacheFile   = "apiserver.json"
	cacheFormat = 1
	// CacheRefresh is when Save writes what has not changed, so that the age
	// in the file keeps meaning something. Below it a second run writes nothing.
	CacheRefresh = 24 * time.Hour
)

var (
	// ErrNoCache: nothing has been saved yet.
	ErrNoCache = errors.New("no addresses have been saved yet")
	// ErrDamaged: the file is there but cannot be believed. Save moves it
	// aside (apiserver.json.damaged) and writes a good one.
	ErrDamaged = errors.New("the saved addresses are damaged")
	// ErrNewerFormat: a later firsthop wrote the file. It is left alone.
	ErrNewerFormat = errors.New("the saved addresses are of a newer format")
	// ErrEmptySet: an empty set is never saved.
	ErrEmptySet = errors.New("refuse to save an empty set of addresses")
)

// CachePath is where the addresses are saved, for messages.
func CachePath(stateDir string) string { return filepath.Join(stateDir, cacheFile) }

// What Save keeps of a file that it replaces is named by these.
const damagedSuffix, foreignSuffix = ".damaged", ".other-cluster"

// CacheFiles are all files that Save ever leaves in a state directory.
func CacheFiles(stateDir string) []string {
	path := CachePath(stateDir)
	return []string{path, path + damagedSuffix, path + foreignSuffix}
}

// the file; field order is the canonical order that the checksum is taken over.
type cacheJSON struct {
	Format    int                 `json:"format"`
	SavedAt   time.Time           `json:"saved_at"`
	Source    string              `json:"source"`
	Services  []netip.AddrPort    `json:"services"`
	Endpoints []cacheEndpointJSON `json:"endpoints"`
	// Bound came later. An earlier firsthop ignores it, and reads the rest.
	Bound  *boundJSON `json:"bound,omitempty"`
	SHA256 string     `json:"sha256,omitempty"`
}

// boundJSON says how well the addresses are known, and to whom they belong.
type boundJSON struct {
	Services  Certainty `json:"service_certainty,omitempty"`
	Endpoints Certainty `json:"endpoint_certainty,omitempty"`
	// ClusterKeys are fingerprints of the CA's keys, for people.
	ClusterKeys []string `json:"cluster_keys,omitempty"`
	ClusterCA   string   `json:"cluster_ca,omitempty"`
	Machine     Machine  `json:"machine,omitzero"`
	SHA256      string   `json:"sha256,omitempty"`
}

type cacheEndpointJSON struct {
	Endpoint Endpoint   `json:"endpoint"`
	LastLive *time.Time `json:"last_live,omitempty"`
}

// sum is the checksum over the file's canonical form: compact JSON of the
// same fields without the checksum.
func (c cacheJSON) sum() (string, error) {
	c.SHA256, c.Bound = "", nil // as the first version took it
	return sumOf(c)
}

// boundSum is the checksum over all of it.
func (c cacheJSON) boundSum() (string, error) {
	bound := *c.Bound
	bound.SHA256, c.Bound = "", &bound
	c.SHA256 = ""
	return sumOf(c)
}

func sumOf(c any) (string, error) {
	b, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:]), nil
}

// Load reads the addresses saved in stateDir. It changes nothing. Errors are
// ErrNoCache, ErrDamaged, ErrNewerFormat (all with the path and what is
// wrong), or one of the file system.
func Load(stateDir string) (*Known, error) {
	path := CachePath(stateDir)
	b, err := instance.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w in %s", ErrNoCache, path)
	case errors.Is(err, instance.ErrNotRegular), errors.Is(err, instance.ErrTooLarge): // not what we wrote
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	case err != nil:
		return nil, err
	case len(b) > hostfs.MaxFile:
		return nil, fmt.Errorf("%w: %s is larger than %d bytes", ErrDamaged, path, hostfs.MaxFile)
	}
	k, err := decodeCache(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return k, nil
}

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
}

func decodeCache(b []byte) (*Known, error) {
	var probe struct {
		Format *int `json:"format"`
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return nil, damaged("the file is empty")
	}
	if err := json.Unmarshal(b, &probe); err != nil {
		return nil, damaged("not JSON: %v", err)
	}
	switch {
	case probe.Format == nil || *probe.Format < 1:
		return nil, damaged("no format version")
	case *probe.Format > cacheFormat:
		return nil, fmt.Errorf("%w: it is %d, this firsthop reads up to %d", ErrNewerFormat, *probe.Format, cacheFormat)
	}
	var c cacheJSON
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, damaged("%v", err)
	}
	want, err := c.sum()
	if err != nil {
		return nil, damaged("%v", err)
	}
	if c.SHA256 != want {
		return nil, damaged("checksum is %q, the content has %s", Clip(c.SHA256), want)
	}
	k := &Known{Services: c.Services, Source: c.Source, SavedAt: c.SavedAt}
	if b := c.Bound; b != nil {
		want, err := c.boundSum()
		if err != nil {
			return nil, damaged("%v", err)
		}
		if b.SHA256 != want {
			return nil, damaged("checksum of what it is bound to is %q, the content has %s", Clip(b.SHA256), want)
		}
		k.ServicesCertainty, k.EndpointsCertainty, k.CA, k.Machine = b.Services, b.Endpoints, []byte(b.ClusterCA), b.Machine
	}
	for _, s := range c.Services {
		if !s.IsValid() || s.Port() == 0 || RefuseAddr(s.Addr()) != "" || s.Addr().Is4In6() {
			return nil, damaged("service %s is not usable", s)
		}
	}
	for _, e := range c.Endpoints {
		ke := KnownEndpoint{Endpoint: e.Endpoint}
		if e.Endpoint == (Endpoint{}) {
			return nil, damaged("an endpoint is empty")
		}
		if e.LastLive != nil {
			ke.LastLive = *e.LastLive
		}
		k.Endpoints = append(k.Endpoints, ke)
	}
	if len(k.Services) == 0 || len(k.Endpoints) == 0 {
		return nil, damaged("it names no Service IP or no endpoint")
	}
	return k, nil
}

func encodeCache(k *Known, now time.Time) ([]byte, error) {
	c := cacheJSON{Format: cacheFormat, SavedAt: now.UTC().Round(0), Source: k.Source, Services: k.Services}
	for _, e := range k.Endpoints {
		j := cacheEndpointJSON{Endpoint: e.Endpoint}
		if !e.LastLive.IsZero() {
			t := e.LastLive.UTC().Round(0)
			j.LastLive = &t
		}
		c.Endpoints = append(c.Endpoints, j)
	}
	c.Bound = &boundJSON{Services: k.ServicesCertainty, Endpoints: k.EndpointsCertainty,
		ClusterKeys: keyFingerprints(k.CA), ClusterCA: string(k.CA), Machine: k.Machine}
	var err error
	if c.SHA256, err = c.sum(); err != nil {
		return nil, err
	}
	if c.Bound.SHA256, err = c.boundSum(); err != nil {
		return nil, err
	}
	b, err := json.MarshalIndent(c, "", "  ")
	return append(b, '\n'), err
}

// SaveConfig says where and how Save writes.
type SaveConfig struct {
	StateDir string
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Record is called before each change of the host, for undo: kind "dir"
	// or "file", and the former state, "" for absent. nil records nothing.
	Record func(kind instance.Kind, target, former string) error
}

func (c SaveConfig) now() time.Time {
	if c.Now == nil {
		return time.Now()
	}
	return c.Now()
}

// PlanSave says what Save would do, and changes nothing: write tells whether
// it would write, why gives the reason in words. The errors are those of Save.
func PlanSave(cfg SaveConfig, k *Known) (write bool, why string, err error) {
	_, write, why, err = planSave(cfg, k)
	return write, why, err
}

func planSave(cfg SaveConfig, k *Known) (merged *Known, write bool, why string, err error) {
	if len(k.Services) == 0 || len(k.Endpoints) == 0 {
		return nil, false, "", ErrEmptySet
	}
	old, err := Load(cfg.StateDir)
	switch {
	case errors.Is(err, ErrNoCache):
		return k, true, "nothing saved yet", nil
	case errors.Is(err, ErrDamaged):
		return k, true, err.Error(), nil
	case err != nil:
		return nil, false, "", err
	}
	if why := old.Foreign(k.Machine, &Trust{CA: k.CA}); why != "" {
		return k, true, "the addresses that are saved are replaced: " + why, nil
	}
	k = k.over(old)
	switch {
	case !old.sameAddresses(k):
		return k, true, "the addresses have changed", nil
	case cfg.now().Sub(old.SavedAt) >= CacheRefresh, cfg.now().Before(old.SavedAt):
		return k, true, "saved on " + old.SavedAt.Format(time.RFC3339) + ", to be refreshed", nil
	}
	return k, false, "unchanged", nil
}

// Save writes the addresses, unless PlanSave says there is no need: to a
// temporary file, synced, renamed over the old one, directory synced. After a
// power loss there is the old file or the new one. It creates StateDir (0700)
// if needed, keeps a damaged file as apiserver.json.damaged, and refuses an
// empty set (ErrEmptySet) and a file of a newer format (ErrNewerFormat).
func Save(cfg SaveConfig, k *Known) (wrote bool, err error) {
	k, write, _, err := planSave(cfg, k)
	if err != nil || !write {
		return false, err
	}
	if err := ensureStateDir(cfg); err != nil {
		return false, err
	}
	path := CachePath(cfg.StateDir)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		if err := cfg.record(instance.KindFile, path, ""); err != nil {
			return false, err
		}
	}
	b, err := encodeCache(k, cfg.now())
	if err != nil {
		return false, err
	}
	if err := moveAside(cfg, path, k); err != nil {
		return false, err
	}
	return true, instance.WriteFile(path, b, instance.Writing{Durable: true})
}

func (c SaveConfig) record(kind instance.Kind, target, former string) error {
	if c.Record == nil {
		return nil
	}
	return c.Record(kind, target, former)
}

func ensureStateDir(cfg SaveConfig) error {
	missing := instance.Missing(cfg.StateDir)
	if len(missing) > 0 {
		if err := cfg.record(instance.KindDir, cfg.StateDir, ""); err != nil {
			return err
		}
	}
	return instance.Make(missing, 0o700)
}

// moveAside keeps what somebody may want to look at: a damaged file, and one
// of another cluster or machine. One of each is kept; a later one replaces it,
// so that a bad disk does not fill itself up.
func moveAside(cfg SaveConfig, path string, k *Known) error {
	old, err := Load(cfg.StateDir)
	aside := path + damagedSuffix
	switch {
	case err == nil && old.Foreign(k.Machine, &Trust{CA: k.CA}) != "":
		aside = path + foreignSuffix
	case !errors.Is(err, ErrDamaged):
		return nil
	}
	if _, err := os.Lstat(aside); errors.Is(err, fs.ErrNotExist) {
		if err := cfg.record(instance.KindFile, aside, ""); err != nil {
			return err
		}
	}
	return os.Rename(path, aside)
}
