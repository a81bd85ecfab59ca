package bundle

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"launcher/internal/errs"
)

func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func names(t *testing.T, dir string) (out []string) {
	t.Helper()
	_ = filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if rel, _ := filepath.Rel(dir, p); err == nil && rel != "." && !d.IsDir() {
			out = append(out, rel)
		}
		return err
	})
	return out
}

func TestThereAndBack(t *testing.T) {
	dir := tree(t, map[string]string{
		"main.py": "x", "lib/deep/a.py": "aa", "lib/run.sh": "#!/bin/sh\n", ".git/config": "no", "lib/__pycache__/a.pyc": "no",
		".gitignore": "*.log\n/out\ndata/**\n!data/keep.txt\n# a comment\n\n", "a.log": "no", "lib/b.log": "no", "out/x": "no", "lib/out/x": "yes",
		"data/big": "no", "data/keep.txt": "yes", "lib/.launcherignore": "deep/*.tmp\nonly/\n!b.log\n", "lib/deep/c.tmp": "no", "lib/only/x": "no", "only": "yes", ".launcher-here-1": "no"})
	for _, err := range []error{os.Chmod(filepath.Join(dir, "lib/run.sh"), 0o755), os.Symlink("lib/run.sh", filepath.Join(dir, "run")), syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600), os.Chmod(filepath.Join(dir, "lib/deep"), 0o500)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = os.Chmod(filepath.Join(dir, "lib/deep"), 0o700) })
	var a, b bytes.Buffer
	if err := Pack(t.Context(), &a, dir); err != nil {
		t.Fatal(err)
	}
	if err := Pack(t.Context(), &b, dir); err != nil || !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Fatalf("packed twice: not the same, %v", err)
	}
	to := t.TempDir()
	if err := Unpack(&a, to); err != nil {
		t.Fatal(err)
	}
	want := []string{".gitignore", "data/keep.txt", "lib/.launcherignore", "lib/b.log", "lib/deep/a.py", "lib/out/x", "lib/run.sh", "main.py", "only", "run"}
	if got := names(t, to); !slices.Equal(got, want) {
		t.Errorf("came %q, want %q", got, want)
	}
	if text, err := os.ReadFile(filepath.Join(to, "lib/deep/a.py")); string(text) != "aa" {
		t.Errorf("a.py is %q, %v", text, err)
	}
	if link, err := os.Readlink(filepath.Join(to, "run")); link != "lib/run.sh" {
		t.Errorf("run is a link to %q, %v", link, err)
	}
	was, err := os.Stat(filepath.Join(dir, "lib/run.sh"))
	if err != nil {
		t.Fatal(err)
	}
	if is, err := os.Stat(filepath.Join(to, "lib/run.sh")); err != nil || is.Mode() != was.Mode() || is.ModTime().Unix() != was.ModTime().Unix() {
		t.Errorf("run.sh has mode %v of %v, %v", is.Mode(), is.ModTime(), err)
	}
}

func TestBounds(t *testing.T) {
	dir := tree(t, map[string]string{"code.py": "x", "data/a": strings.Repeat("x", 600), "data/b": strings.Repeat("x", 600)})
	var w bytes.Buffer
	err := pack(t.Context(), &w, dir, 1000, 100)
	if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "the most is in data") || w.Len() > 0 {
		t.Errorf("too large: %v, and %d bytes", err, w.Len())
	}
	if err := pack(t.Context(), &w, dir, 10_000, 3); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "more than 3 files") {
		t.Errorf("too many: %v", err)
	}
}

// TestNothingOutside: a stream that is not of Pack's making writes nowhere else.
func TestNothingOutside(t *testing.T) {
	for _, all := range [][]tar.Header{
		{{Typeflag: tar.TypeReg, Name: "../out"}},
		{{Typeflag: tar.TypeReg, Name: "/tmp/out"}},
		{{Typeflag: tar.TypeSymlink, Name: "up", Linkname: ".."}, {Typeflag: tar.TypeReg, Name: "up/out"}},
		{{Typeflag: tar.TypeChar, Name: "out"}},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range all {
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(t.TempDir(), "x")
		if err := os.Mkdir(to, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := Unpack(&b, to); err == nil {
			t.Errorf("%v is unpacked", all)
		}
		if _, err := os.Lstat(filepath.Join(to, "..", "out")); err == nil {
			t.Errorf("%v: a file outside", all)
		}
	}
}

// TestSame: a directory is the one that it is, and no other.
func TestSame(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	for _, name := range []string{"", "one file", "two"} {
		if name != "" {
			for _, d := range []string{a, b} {
				if err := os.WriteFile(filepath.Join(d, name), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		tok := Token(a)
		if tok == "" || !Same(a, tok) || Same(b, tok) || Same(filepath.Join(a, "none"), tok) {
			t.Errorf("with %q, token %q: itself %t, another %t", name, tok, Same(a, tok), Same(b, tok))
		}
	}
	tok := Token(a)
	if err := os.WriteFile(filepath.Join(a, "new"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if !Same(a, tok) {
		t.Error("with a file more it is another directory")
	}
	for _, bad := range []string{"", ".token", "1 2", "1 2 ../x"} {
		if Same(a, bad) {
			t.Errorf("it is what %q tells of", bad)
		}
	}
}

// TestPackAll leaves nothing out.
func TestPackAll(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	for name, text := range map[string]string{".gitignore": "*", ".git": "x", "__pycache__": "y"} {
		if err := os.WriteFile(filepath.Join(from, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	if err := PackAll(t.Context(), &b, from); err != nil {
		t.Fatal(err)
	}
	if err := Unpack(&b, to); err != nil {
		t.Fatal(err)
	}
	if all, _ := os.ReadDir(to); len(all) != 3 {
		t.Errorf("%d files came, wanted 3", len(all))
	}
}
