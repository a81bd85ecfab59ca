package ssh

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"launcher/backends/ssh/host"
	"launcher/internal/errs"
	"launcher/internal/testkit"
)

// ready makes a host ready, asks the process there what it is, and hangs up.
func ready(t *testing.T, d dialer, s site, shelf *shelf, how ...string) (place, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	ch, err := d.Open(ctx, s, shell)
	if err != nil {
		t.Fatal(err)
	}
	conn, at, err := (&provision{host: "box", dir: s.Directory, who: "test", shelf: shelf, how: strings.Join(how, "")}).run(ctx, ch)
	if err != nil {
		return at, err
	}
	defer ch.Close()
	c, err := host.Dial(ctx, conn, "box", nil)
	if err != nil {
		return at, err
	}
	defer c.Close()
	if f, err := c.Facts(ctx); err != nil || f.Root != at.Root {
		t.Errorf("the process there says %+v, %v; it was started in %q", f, err, at.Root)
	}
	return at, nil
}

func ownShelf(t *testing.T) *shelf {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return newShelf(exe, t.TempDir())
}

// login writes a login shell: it does what lines say and then what it was told to.
func login(t *testing.T, lines string) []string {
	path := filepath.Join(t.TempDir(), "login")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+lines+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return []string{path, "-c"}
}

func TestLogins(t *testing.T) {
	home := t.TempDir()
	for name, c := range map[string]struct {
		lines string
		err   string // "" = it must work
	}{
		"noise":     {`echo "Welcome, no newline after this"; printf 'You have mail: '; eval "$2"`, ""},
		"stderr":    {`echo "stty: not a tty" >&2; eval "$2"`, ""},
		"nologin":   {`echo "This account is currently not available."; exit 1`, "This account is currently not available"},
		"no uname":  {`uname() { echo Linux; }; PATH=/bin:/usr/bin; eval "$2"`, ""},
		"darwin":    {fake(t, "uname", `case $1 in -s) echo Darwin ;; *) echo x ;; esac`) + `eval "$2"`, "the host runs Darwin"},
		"riscv":     {fake(t, "uname", `case $1 in -s) echo Linux ;; -m) echo riscv64 ;; *) echo x ;; esac`) + `eval "$2"`, "riscv64"},
		"arm64":     {fake(t, "uname", `case $1 in -s) echo Linux ;; -m) echo aarch64 ;; *) echo x ;; esac`) + `eval "$2"`, "launcher-linux-arm64"},
		"full disk": {fake(t, "df", `echo head; echo /dev/x 100 90 10 90% /`) + `eval "$2"`, "MiB are needed"},
		"noexec":    {fake(t, "chmod", `case $2 in */.try.*) exec /bin/chmod 600 "$2" ;; *) exec /bin/chmod "$@" ;; esac`) + `eval "$2"`, "programs cannot be run there"},
		"no place":  {`eval "$2"`, "it cannot be made"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(home, strings.ReplaceAll(name, " ", ""), "a b")
			if name == "no place" {
				dir = "/proc/no"
			}
			at, err := ready(t, &shells{login: login(t, c.lines)}, site{Directory: dir}, ownShelf(t))
			switch {
			case c.err == "" && err != nil:
				t.Fatal(err)
			case c.err == "":
				if at.Root != dir {
					t.Errorf("it is at %q, wanted %q", at.Root, dir)
				}
			case err == nil:
				t.Fatal("it works")
			case !strings.Contains(err.Error()+strings.Join(errs.HintsOf(err), " "), c.err) || errs.Retryable(err):
				t.Errorf("error %v (%s), hints %q, wanted one with %q that says not to try again", err, errs.KindOf(err), errs.HintsOf(err), c.err)
			}
		})
	}
}

// fake gives lines that put a program of the same name before the real one.
func fake(t *testing.T, name, does string) string {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+does+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return "PATH=" + dir + ":$PATH; export PATH; "
}

// cutAfter ends a connection after so many bytes.
type cutAfter struct {
	io.WriteCloser
	left int
}

func (c *cutAfter) Write(b []byte) (int, error) {
	n, err := c.WriteCloser.Write(b[:min(len(b), c.left)])
	if c.left -= n; c.left <= 0 {
		c.WriteCloser.Close()
		return n, errors.New("cut")
	}
	return n, err
}

// TestCutCopy: a copy that was cut goes on where it was.
func TestCutCopy(t *testing.T) {
	for _, packer := range []string{"zstd", "gzip", "none"} {
		t.Run(packer, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "root")
			s := ownShelf(t)
			d := &shells{cut: func(w io.WriteCloser) io.WriteCloser { return &cutAfter{w, 2 << 20} }}
			if _, err := ready(t, d, site{Directory: dir}, s, packer); err == nil || !errs.Retryable(err) {
				t.Fatalf("the cut connection gave %v", err)
			}
			parts, _ := filepath.Glob(filepath.Join(dir, "bin", ".*"))
			if len(parts) != 1 {
				t.Fatalf("parts of the cut copy: %q", parts)
			}
			fi, err := os.Stat(parts[0])
			if err != nil || fi.Size() == 0 {
				t.Fatalf("nothing arrived: %v", err)
			}
			testkit.Eventually(t, testkit.Bound, func() string { // the script of the cut connection ends
				for _, p := range d.all {
					if syscall.Kill(p.cmd.Process.Pid, 0) == nil {
						return "the first script is there"
					}
				}
				return ""
			})
			var sent atomic.Int64
			d.cut = func(w io.WriteCloser) io.WriteCloser { return counter{w, &sent} }
			if _, err := ready(t, d, site{Directory: dir}, s, packer); err != nil {
				t.Fatal(err)
			}
			if whole, _, _ := s.pack(s.known["amd64"], packer, 0); runtime.GOARCH == "amd64" && int(sent.Load()) > len(whole)-1<<20 {
				t.Errorf("%d bytes were sent again of %d, though 2 MiB had arrived", sent.Load(), len(whole))
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "bin", ".*")); len(left) > 0 {
				t.Errorf("parts are left: %q", left)
			}
		})
	}
}

// counter counts what is written.
type counter struct {
	io.WriteCloser
	n *atomic.Int64
}

func (c counter) Write(b []byte) (int, error) {
	n, err := c.WriteCloser.Write(b)
	c.n.Add(int64(n))
	return n, err
}

// TestTwoCopies: copies at the same time do not disturb one another.
func TestTwoCopies(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "root")
	s := ownShelf(t)
	errc := make(chan error, 3)
	for range cap(errc) {
		go func() {
			_, err := ready(t, &shells{}, site{Directory: dir}, s)
			errc <- err
		}()
	}
	for range cap(errc) {
		if err := <-errc; err != nil {
			t.Error(err)
		}
	}
}
