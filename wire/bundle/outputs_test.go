package bundle

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"launcher/internal/errs"
	"launcher/wire"
)

// TestOutputs: what a program made of a copy comes back, and nothing else.
func TestOutputs(t *testing.T) {
	from := tree(t, map[string]string{"out/same": "same", "out/changed": "old", "keep": "x", "model/w": "w"})
	var packed bytes.Buffer
	if err := Pack(t.Context(), &packed, from); err != nil {
		t.Fatal(err)
	}
	copied := t.TempDir()
	if err := Unpack(bytes.NewReader(packed.Bytes()), copied); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"out/changed": "new", "out/deep/er/x": "xx", "other": "no", "model/new": "n", "log.txt": "l"} {
		p := filepath.Join(copied, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("x", filepath.Join(copied, "out/deep/er/link")); err != nil {
		t.Fatal(err)
	}
	into := tree(t, map[string]string{"out/changed": "old", "mine": "m"})
	tok := Token(into)
	came := func(most int64, globs ...string) ([]string, error) {
		t.Helper()
		var b, z bytes.Buffer
		if err := packOutputs(t.Context(), &b, copied, bytes.NewReader(packed.Bytes()), globs, most); err != nil {
			return nil, err
		}
		w, err := Compress(&z)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(b.Bytes()); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		r, err := Decompress(&z)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		to := t.TempDir()
		if err := Unpack(r, to); err != nil {
			t.Fatal(err)
		}
		n, err := Bring(t.Context(), to, wire.Into{Dir: into, Token: tok, Tag: "t"})
		if got := names(t, to); err == nil && n.Files != len(got) {
			t.Errorf("%d files came of %q", n.Files, got)
		}
		return names(t, to), err
	}
	for _, c := range []struct {
		globs string
		want  string
	}{
		{"out/**", "out/changed out/deep/er/link out/deep/er/x"},
		{"out", "out/changed out/deep/er/link out/deep/er/x"},
		{"./out/deep/", "out/deep/er/link out/deep/er/x"},
		{"**/x *.txt", "log.txt out/deep/er/x"},
		{"model/* keep none*", "model/new"},
	} {
		got, err := came(1000, strings.Fields(c.globs)...)
		if err != nil || !slices.Equal(got, strings.Fields(c.want)) {
			t.Errorf("%s: %q, %v", c.globs, got, err)
		}
	}
	if text, err := os.ReadFile(filepath.Join(into, "out/deep/er/link")); string(text) != "xx" {
		t.Errorf("the link leads to %q, %v", text, err)
	}
	if text, err := os.ReadFile(filepath.Join(into, "out/changed")); string(text) != "new" {
		t.Errorf("out/changed is %q, %v", text, err)
	}
	if _, err := came(3, "out"); !errs.Is(err, errs.Exhausted) || !strings.Contains(err.Error(), "at most 3B") {
		t.Errorf("more than there may be: %v", err)
	}
	for _, p := range names(t, into) {
		if strings.Contains(p, TokenPrefix) {
			t.Errorf("%s is left", p)
		}
	}
}

// TestBringInto: files go nowhere but into the directory that was meant.
func TestBringInto(t *testing.T) {
	from := tree(t, map[string]string{"out/x": "x"})
	outside, dir := t.TempDir(), t.TempDir()
	if err := os.Symlink(outside, filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	tok := Token(dir)
	if _, err := Bring(t.Context(), from, wire.Into{Dir: dir, Token: tok}); err == nil || len(names(t, outside)) > 0 {
		t.Errorf("by way of a link: %v, %q", err, names(t, outside))
	}
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	if _, err := Bring(t.Context(), from, wire.Into{Dir: dir, Token: tok}); !errs.Is(err, errs.NotFound) {
		t.Errorf("without the directory: %v", err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Bring(t.Context(), from, wire.Into{Dir: dir, Token: tok}); !errs.Is(err, errs.NotFound) || len(names(t, dir)) > 0 {
		t.Errorf("another directory of the name: %v, %q", err, names(t, dir))
	}
}
