package host

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func put(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRecord: what arrives takes the place of what was there, and what belongs to the
// machine stays.
func TestRecord(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	put(t, from, map[string]string{"journal/2": "new", "jobs/1/out": "words", "ca.key": "key", "head.config": "there", "down.done": "", "nodes/box-0/x": "x", "ssh/t.json": "t"})
	put(t, to, map[string]string{"journal/1": "old", "head.config": "here", "ssh/t.json": "mine"})
	var b bytes.Buffer
	if err := Pack(from, &b, downDone); err != nil {
		t.Fatal(err)
	}
	if err := Unpack(to, bytes.NewReader(b.Bytes())); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"journal/2": "new", "jobs/1/out": "words", "ca.key": "key", "head.config": "here", "ssh/t.json": "mine"} {
		if got, err := os.ReadFile(filepath.Join(to, name)); string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for _, name := range []string{"journal/1", "down.done", "nodes", arriving} {
		if _, err := os.Stat(filepath.Join(to, name)); err == nil {
			t.Errorf("%s is there", name)
		}
	}
	// Cut in the middle, nothing is replaced.
	put(t, to, map[string]string{"journal/2": "kept"})
	if err := Unpack(to, bytes.NewReader(b.Bytes()[:b.Len()/2])); err == nil {
		t.Error("half a record was taken")
	}
	if got, _ := os.ReadFile(filepath.Join(to, "journal/2")); string(got) != "kept" {
		t.Errorf("after half a record: %q", got)
	}
}

// TestForeignRecord: nothing is written outside, or over what is not of a record.
func TestForeignRecord(t *testing.T) {
	for _, h := range []tar.Header{
		{Typeflag: tar.TypeReg, Name: "../x"}, {Typeflag: tar.TypeReg, Name: "/x"}, {Typeflag: tar.TypeReg, Name: "head.config"},
		{Typeflag: tar.TypeSymlink, Name: "x", Linkname: "/etc"}, {Typeflag: tar.TypeReg, Name: "ssh/t.json"}, {Typeflag: tar.TypeReg, Name: ""},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		_ = w.Close()
		if err := Unpack(t.TempDir(), &b); err == nil {
			t.Errorf("%q was taken", h.Name)
		}
	}
}
