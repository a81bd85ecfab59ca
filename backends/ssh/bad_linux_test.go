package ssh

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"launcher/backends"
	"launcher/backends/ssh/dial"
	"launcher/internal/errs"
	"launcher/internal/testkit"
	"launcher/wire"
)

// siteOf is a server of the Lab.
func siteOf(l *testkit.Lab, name, dir string) site {
	return site{Name: name, Host: name, Config: l.Config, Directory: dir}
}

// over reaches hosts by ssh, and calls at when so many bytes have been written to one.
type over struct {
	dialer
	after int
	at    func()
	once  sync.Once
}

func (o *over) Open(ctx context.Context, s site, line string) (channel, error) {
	ch, err := o.dialer.Open(ctx, s, line)
	return &overChannel{channel: ch, o: o, left: o.after}, err
}

type overChannel struct {
	channel
	o    *over
	left int
}

func (c *overChannel) Write(b []byte) (int, error) {
	n, err := c.channel.Write(b)
	if c.left -= n; c.left <= 0 {
		c.o.once.Do(c.o.at)
	}
	return n, err
}

func sshDialer(t *testing.T) dialer {
	d := network{dial.New(dial.Options{})}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// small is a small launcher: it starts the test's binary. The rest of size is noise that
// does not compress.
func small(t *testing.T, dir, name, line string, size int) string {
	t.Helper()
	rest := make([]byte, size)
	_, _ = rand.Read(rest)
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, fmt.Appendf(nil, "#!/bin/sh\n%s\n%s", line, rest), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// copyOwn copies the test's binary to where others may run it, with more after its end.
func copyOwn(t *testing.T, dir, name, more string) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, append(b, more...), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestRootHosts: accounts as they are found, each behind a real sshd: their shells, what
// their rc files print, and their homes.
func TestRootHosts(t *testing.T) {
	u := testkit.PlainUser(t, 1)
	l := testkit.SSHD(t)
	run := fmt.Sprintf("exec %q \"$@\"", copyOwn(t, l.Dir, "own", ""))
	shelves := &shelf{own: small(t, l.Dir, "launcher", run, 0), dirs: []string{l.Dir}, known: map[string]binary{}, packs: map[pack]*packed{}}
	small(t, l.Dir, "launcher-linux-arm64", "# of the other architecture\n"+run, 0)
	d := sshDialer(t)
	file := func(name, text string) string { // of the home
		return fmt.Sprintf("mkdir -p \"$HOME/%s\"; printf '%%s\\n' '%s' >\"$HOME/%s\"", filepath.Dir(name), text, name)
	}
	const noexec = `mount -t tmpfs -o noexec,mode=777 none "$HOME"`
	for name, c := range map[string]struct {
		shell, home, dir string
		inside           []string
		elsewhere        bool   // below $TMPDIR in place of the home
		err              string // "" = it must work
	}{
		"plain":      {},
		"noisy":      {inside: []string{file(".bashrc", `printf "You have mail: "; stty -a; echo "an error" >&2; head -c 300000 /dev/zero | tr "\0" x`)}},
		"endless":    {inside: []string{file(".bashrc", `exec yes`)}, err: "prints without end"},
		"rc exits":   {inside: []string{file(".bashrc", `echo "go away"; exit 1`)}, err: "go away"},
		"csh":        {shell: "/usr/bin/tcsh", inside: []string{file(".cshrc", `echo "csh says hello"`)}},
		"fish":       {shell: "/usr/bin/fish", inside: []string{file(".config/fish/config.fish", `echo "fish says hello"; set -x PATH /nowhere`)}},
		"nologin":    {shell: "/usr/sbin/nologin", err: "currently not available"},
		"no shell":   {shell: "/bin/false", err: "runs no commands"},
		"space":      {home: "a home"},
		"quotes":     {home: `o'neill "x"`, dir: "~/the dir's"},
		"missing":    {inside: []string{`rmdir "$HOME"`}, elsewhere: true},
		"unwritable": {inside: []string{`chown 0 "$HOME"; chmod 755 "$HOME"`}, elsewhere: true},
		"read-only":  {inside: []string{`mount -t tmpfs -o ro none "$HOME"`}, elsewhere: true},
		"noexec":     {inside: []string{noexec}, elsewhere: true},
		"asked for":  {dir: "~/x", inside: []string{noexec}, err: "programs cannot be run there"},
		"full":       {dir: "~/x", inside: []string{`mount -t tmpfs -o size=32k,mode=777 none "$HOME"`}, err: "are needed"},
		"arm64":      {inside: []string{`printf '#!/bin/sh\ncase $1 in -s) echo Linux ;; -m) echo aarch64 ;; *) echo box ;; esac' >"$HOME/uname"; chmod 755 "$HOME/uname"; mount --bind "$HOME/uname" /bin/uname`}},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := os.Stat(c.shell); c.shell != "" && err != nil {
				t.Skipf("SKIP: there is no %s (make setup as root on Debian)", c.shell)
			}
			id := strings.ReplaceAll(name, " ", "-")
			tmp := filepath.Join(l.Dir, "tmp-"+id)
			if err := os.Mkdir(tmp, 0o777); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(tmp, 0o777); err != nil {
				t.Fatal(err)
			}
			o := testkit.ServerOptions{As: u, Shell: c.shell, Inside: c.inside, Env: []string{"TMPDIR=" + tmp}}
			if c.home != "" {
				o.Home = filepath.Join(l.Dir, id, c.home)
			}
			s := l.Start(id, o)
			at, err := ready(t, d, siteOf(l, id, c.dir), shelves)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) || errs.Retryable(err) {
					t.Errorf("error %v (%s), wanted one with %q that says not to try again", err, errs.KindOf(err), c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := filepath.Join(s.Home, ".launcher")
			if c.elsewhere {
				want = filepath.Join(tmp, fmt.Sprintf("launcher-%d", u.UID))
			} else if c.dir != "" {
				want = filepath.Join(s.Home, strings.TrimPrefix(c.dir, "~/"))
			}
			if at.Root != want {
				t.Errorf("it is at %q, wanted %q", at.Root, want)
			}
			arch := "amd64"
			if name == "arm64" {
				arch = name
			}
			if arch == "arm64" || shelves.known["amd64"].path == shelves.own {
				if _, err := os.Stat(filepath.Join(at.Root, "bin", shelves.known[arch].sum[:32], "launcher")); err != nil {
					t.Errorf("not the binary for %s: %v", arch, err)
				}
			}
		})
	}
}

// TestRootDiskFull: a disk that fills up under the copy is told of; with room again the
// copy is made.
func TestRootDiskFull(t *testing.T) {
	l := testkit.SSHD(t)
	home := filepath.Join(l.Dir, "small")
	if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", home, "tmpfs", 0, "size=12m,mode=0700"); err != nil {
		t.Skipf("SKIP: no small file system can be made here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(home, unix.MNT_DETACH) })
	l.Start("box", testkit.ServerOptions{Home: home})
	exe, _ := os.Executable()
	s := newShelf(small(t, t.TempDir(), "launcher", fmt.Sprintf("exec %q \"$@\"", exe), 8<<20), t.TempDir())
	ballast := filepath.Join(home, "ballast")
	d := &over{dialer: sshDialer(t), after: 2 << 20, at: func() { _ = os.WriteFile(ballast, make([]byte, 12<<20), 0o600) }}
	at := siteOf(l, "box", "")
	at.Directory = "~/x"
	_, err := ready(t, d, at, s)
	if err == nil || errs.KindOf(err) != errs.Exhausted || !strings.Contains(err.Error(), "No space left") || len(errs.HintsOf(err)) == 0 {
		t.Errorf("error %v (%s), hints %q", err, errs.KindOf(err), errs.HintsOf(err))
	}
	if left, _ := filepath.Glob(filepath.Join(home, "x", "bin", ".*")); len(left) > 0 {
		t.Errorf("parts are left on the full disk: %q", left)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if _, err := ready(t, d, at, s); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// TestCutLink: a link that is cut in the copy gives an error that says to try again, and
// the next copy goes on where the first was cut.
func TestCutLink(t *testing.T) {
	l := testkit.SSHD(t)
	srv := l.Start("box", testkit.ServerOptions{})
	exe, _ := os.Executable()
	s := newShelf(small(t, t.TempDir(), "launcher", fmt.Sprintf("exec %q \"$@\"", exe), 8<<20), t.TempDir())
	d := &over{dialer: sshDialer(t), after: 4 << 20, at: srv.Cut}
	if _, err := ready(t, d, siteOf(l, "box", ""), s); !errs.Retryable(err) {
		t.Fatalf("the cut link gave %v (%s)", err, errs.KindOf(err))
	}
	testkit.Eventually(t, testkit.Bound, func() string { // the script of the cut link ends
		if p := srv.Sessions(); len(p) > 0 {
			return fmt.Sprintf("processes %d are there", p)
		}
		return ""
	})
	parts, _ := filepath.Glob(filepath.Join(srv.Home, ".launcher", "bin", ".*"))
	if len(parts) != 1 {
		t.Fatalf("parts of the cut copy: %q", parts)
	}
	fi, err := os.Stat(parts[0])
	if err != nil || fi.Size() == 0 {
		t.Fatalf("nothing arrived: %v", err)
	}
	sent := 0
	again := &over{dialer: d.dialer, after: 8<<20 - int(fi.Size()) + 1<<20, at: func() { sent++ }}
	if _, err := ready(t, again, siteOf(l, "box", ""), s); err != nil || sent > 0 {
		t.Errorf("%v; too much was sent again: %t (%d bytes had arrived)", err, sent > 0, fi.Size())
	}
}

// TestOtherVersion: nodes that a launcher of another version started are seen and ended.
func TestOtherVersion(t *testing.T) {
	w := newWorld(t)
	old := w.open()
	r := w.request("old", 1)
	a, err := old.Submit(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	old.Close()
	b := w.open()
	defer b.Close()
	r2 := w.request("new", 1)
	r2.Binary = copyOwn(t, t.TempDir(), "launcher", "of another version")
	a2, err := b.Submit(t.Context(), r2)
	if err != nil {
		t.Fatal(err)
	}
	if bins, _ := filepath.Glob(filepath.Join(w.root, "bin", "*", "launcher")); len(bins) != 2 {
		t.Errorf("binaries on the host: %q, wanted two", bins)
	}
	all := [][]byte{a[0].Handle, a2[0].Handle}
	st, err := b.Status(t.Context(), all)
	if err != nil || st[0].State != backends.Running || st[1].State != backends.Running {
		t.Errorf("%+v, %v", st, err)
	}
	// The same node in its next life, of the new version: what is left of the old one goes.
	r3 := w.request("next", 1)
	r3.Binary, r3.Nodes, r3.Epochs = r2.Binary, r.Nodes, []wire.Epoch{2}
	a3, err := b.Submit(t.Context(), r3)
	if err != nil {
		t.Fatal(err)
	}
	all = append(all, a3[0].Handle)
	if st, err := b.Status(t.Context(), all); err != nil || !st[0].State.Ended() || st[1].State != backends.Running || st[2].State != backends.Running {
		t.Errorf("after the next life began: %+v, %v", st, err)
	}
	if err := b.Cancel(t.Context(), all); err != nil {
		t.Error(err)
	}
	if n := w.processes("node"); len(n) > 0 {
		t.Errorf("processes %d are left", n)
	}
}

// TestOldBinaries: of other versions' binaries those that run stay, and the two last used,
// and all where a host that cannot be seen may run them.
func TestOldBinaries(t *testing.T) {
	w := newWorld(t)
	b := w.open()
	defer b.Close()
	a, err := b.Submit(t.Context(), w.request("runs", 1))
	if err != nil {
		t.Fatal(err)
	}
	bin := func() (names []string) {
		dirs, _ := filepath.Glob(filepath.Join(w.root, "bin", "*", "launcher"))
		for _, d := range dirs {
			names = append(names, filepath.Base(filepath.Dir(d)))
		}
		return names
	}
	running := bin()
	hosts := func(n int) { // those that hang up end by themselves
		testkit.Eventually(t, testkit.Bound, func() string {
			if got := len(w.processes("host")); got > n {
				return fmt.Sprintf("%d processes of hosts", got)
			}
			return ""
		})
	}
	links := 1
	order := slices.Clone(running) // in which they were used
	use := func(version string) string {
		t.Helper()
		past := time.Now().Add(-time.Hour) // else a file system may give two the same time
		for i, n := range order {
			if err := os.Chtimes(filepath.Join(w.root, "bin", n), past, past.Add(time.Duration(i)*time.Second)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
		}
		s := newShelf(copyOwn(t, t.TempDir(), "launcher", version), t.TempDir())
		if _, err := ready(t, &shells{}, site{Directory: w.root}, s); err != nil {
			t.Fatal(err)
		}
		hosts(links)
		b, err := s.get(runtime.GOARCH)
		if err != nil {
			t.Fatal(err)
		}
		order = append(order, b.sum[:32])
		return b.sum[:32]
	}
	shared := filepath.Join(w.root, "hosts", "another", "x")
	if err := os.MkdirAll(shared, 0o700); err != nil {
		t.Fatal(err)
	}
	use("1")
	use("2")
	use("3")
	if got := bin(); len(got) != 4 {
		t.Errorf("binaries in a shared home: %q, wanted all four", got)
	}
	if err := os.RemoveAll(filepath.Dir(shared)); err != nil {
		t.Fatal(err)
	}
	newest := use("4")
	got := bin()
	if !slices.Contains(got, newest) || !slices.Contains(got, running[0]) || len(got) > 3 {
		t.Errorf("binaries: %q, wanted %s, %s, which runs, and the one used before", got, newest, running[0])
	}
	if err := b.Cancel(t.Context(), [][]byte{a[0].Handle}); err != nil {
		t.Fatal(err)
	}
	b.Close() // its process runs that binary, too
	links = 0
	hosts(links)
	use("5")
	last := use("6")
	if got := bin(); slices.Contains(got, running[0]) || !slices.Contains(got, last) || len(got) != 2 {
		t.Errorf("binaries when nothing runs: %q, wanted %s and the one before", got, last)
	}
}
