package detect

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"launcher/internal/errs"
)

func TestPython(t *testing.T) {
	dir := t.TempDir()
	fake := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
		return p
	}
	env := []string{"PATH=" + dir}
	good := fake("python3", "echo launcher 3 11 2 /usr/bin/python3")
	cases := []struct {
		name, path string
		want       string
		kind       errs.Kind
		says       string
	}{
		{"by default", "", "/usr/bin/python3 3.11.2", 0, ""},
		{"by path", good, "/usr/bin/python3 3.11.2", 0, ""},
		{"by name", "python3", "/usr/bin/python3 3.11.2", 0, ""},
		{"oldest", fake("p39", "echo launcher 3 9 0 /p39"), "/p39 3.9.0", 0, ""},
		{"talks first", fake("chatty", "echo hello; echo launcher 3 12 1 '/with space/python'"), "/with space/python 3.12.1", 0, ""},
		{"does not know its path", fake("anon", "echo launcher 3 12 1"), filepath.Join(dir, "anon") + " 3.12.1", 0, ""},
		{"too old", fake("p38", "echo launcher 3 8 19 /p38"), "", errs.Version, "3.8.19 is too old"},
		{"python 2", fake("p2", "echo launcher 2 7 18 /p2"), "", errs.Version, "2.7.18 is too old"},
		{"none by name", "python9", "", errs.NotFound, "no python9 in PATH"},
		{"none by path", "/no/such/python", "", errs.NotFound, "does not run"},
		{"broken", fake("broken", "echo trace >&2; echo 'ImportError: no encodings' >&2; exit 1"), "", errs.NotFound, "ImportError: no encodings"},
		{"no python at all", "/bin/true", "", errs.Invalid, "does not answer"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			p, err := FindPython(context.Background(), tc.path, append(env, "X=1"))
			if tc.says == "" {
				if err != nil || p.String() != tc.want {
					t.Errorf("got %q, %v; want %q", p, err, tc.want)
				}
			} else if errs.KindOf(err) != tc.kind || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v (%v), want %v, %q", err, errs.KindOf(err), tc.kind, tc.says)
			}
		})
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := FindPython(ctx, fake("hangs", "exec sleep 1000"), append(env, "PATH=/bin:/usr/bin")); err == nil || time.Since(began) > 15*time.Second {
		t.Errorf("one that hangs: %v after %v", err, time.Since(began))
	}
}

// The machine's own, as the agent will use it.
func TestPythonHere(t *testing.T) {
	p, err := FindPython(context.Background(), "", os.Environ())
	if err != nil {
		t.Skipf("no usable python here: %v", err)
	}
	if p.Major != 3 || !filepath.IsAbs(p.Path) {
		t.Errorf("python %+v", p)
	}
}
