package health

import (
	"os"
	"testing"
)

func TestHolderOfAFreePort(t *testing.T) {
	if h := Holder(freePort(t)); h != "" {
		t.Errorf("%q holds a free port", h)
	}
}

func TestHolderOfAnUnseenProcess(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(dir+"/thread-self/net", 0o755); err != nil {
		t.Fatal(err)
	}
	line := "  sl  local_address rem_address   st\n" +
		"   0: 00000000:2810 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0\n"
	if err := os.WriteFile(dir+"/thread-self/net/tcp", []byte(line), 0o644); err != nil {
		t.Fatal(err)
	}
	if h := holderIn(dir, 10256); h != "" {
		t.Errorf("%q", h)
	}
	for pid, inode := range map[string]string{"41": "4710", "42": "4711"} {
		if err := os.MkdirAll(dir+"/"+pid+"/fd", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("socket:["+inode+"]", dir+"/"+pid+"/fd/3"); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir+"/"+pid+"/comm", []byte("kube-proxy\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if h := holderIn(dir, 10256); h != "kube-proxy (pid 42)" {
		t.Errorf("%q", h)
	}
	if h := holderIn(dir, 10255); h != "" {
		t.Errorf("another port: %q", h)
	}
}
