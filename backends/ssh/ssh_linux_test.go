package ssh

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"launcher/backends"
	"launcher/backends/backendtest"
	"launcher/backends/ssh/dial"
	"launcher/backends/ssh/host"
	"launcher/internal/errs"
	"launcher/internal/testkit"
	"launcher/wire"
)

// The test binary is what is copied to hosts: it is `launcher host` and `launcher node`.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "version":
			return
		case "node":
			os.Exit(node())
		case "host":
			if err := hostMain(os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			return
		}
	}
	os.Exit(m.Run())
}

func hostMain(args []string) error {
	if args[0] == "--sum" {
		return host.Sum(os.Stdout)
	}
	exe, _ := os.Executable()
	s, err := host.NewServer(args[1], exe)
	if err != nil {
		return err
	}
	conn, err := host.Stdio()
	if err != nil {
		return err
	}
	return s.Serve(context.Background(), conn)
}

// node does what the label "do" says.
func node() int {
	var c wire.NodeConfig
	b, err := io.ReadAll(os.Stdin)
	if err != nil || len(b) == 0 || wire.Unmarshal(b, &c) != nil {
		return 3
	}
	sigs := make(chan os.Signal, 1)
	signal.Notify(sigs, syscall.SIGTERM)
	if c.Labels["do"] == "exit" {
		fmt.Fprintln(os.Stderr, "something\nas told")
		return 7
	}
	<-sigs
	return 0
}

// world is a place of hosts; every host is this machine, in another way.
type world struct {
	t    *testing.T
	home string // of the launcher here
	root string // the pool's `directory`
	dial func() dialer
	host string
	next int

	options backends.Options // more of the pool's
}

// shells reaches "hosts" by running a shell here.
type shells struct {
	login []string // the login shell, which gets the command as its last argument
	mu    sync.Mutex
	all   []*process
	cut   func(io.WriteCloser) io.WriteCloser // wraps the next command's input
}

type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out io.ReadCloser
	err testkit.Buffer
	end sync.Once
}

func (p *process) Read(b []byte) (int, error)  { return p.out.Read(b) }
func (p *process) Write(b []byte) (int, error) { return p.in.Write(b) }
func (p *process) Stderr() string              { return p.err.String() }
func (p *process) Close() error {
	p.end.Do(func() {
		p.in.Close()
		p.out.Close()
		go p.cmd.Wait()
	})
	return nil
}

func (s *shells) Split(text string) (string, string, int, error) { return text, "", 0, nil }
func (s *shells) Close() error                                   { return nil }

func (s *shells) Open(ctx context.Context, _ site, command string) (channel, error) {
	login := s.login
	if login == nil {
		login = []string{"/bin/sh", "-c"}
	}
	p := &process{cmd: exec.Command(login[0], append(login[1:len(login):len(login)], command)...)}
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if p.out, err = p.cmd.StdoutPipe(); err != nil {
		return nil, err
	}
	p.cmd.Stderr = &p.err
	s.mu.Lock()
	if s.cut != nil {
		p.in, s.cut = s.cut(p.in), nil
	}
	s.all = append(s.all, p)
	s.mu.Unlock()
	return p, p.cmd.Start()
}

func newWorld(t *testing.T) *world {
	dir := t.TempDir()
	w := &world{t: t, home: filepath.Join(dir, "home"), root: filepath.Join(dir, "host with a space"), host: "here"}
	w.dial = func() dialer { return &shells{} }
	t.Cleanup(func() {
		for _, p := range w.processes("node") {
			t.Errorf("process %d is left", p)
			syscall.Kill(p, syscall.SIGKILL)
		}
	})
	return w
}

func (w *world) open() *Backend { return newBackend(w.home, w.dial()) }

// processes finds those that run a binary below the host's directory.
func (w *world) processes(kind string) (out []int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		exe, err := os.Readlink(d + "/exe")
		if err != nil || !strings.HasPrefix(exe, w.root+"/") {
			continue
		}
		args, _ := os.ReadFile(d + "/cmdline")
		if parts := strings.Split(string(args), "\x00"); len(parts) > 1 && parts[1] == kind {
			pid, _ := strconv.Atoi(filepath.Base(d))
			out = append(out, pid)
		}
	}
	return out
}

func (w *world) request(token string, n int) backends.Request {
	exe, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	r := backends.Request{Token: backendtest.Token(token), Cluster: "lab", Pool: "boxes", Home: w.home, Binary: exe,
		Options: backends.Options{"hosts": []any{w.host}, "directory": w.root},
		Join:    backends.Join{Addrs: []string{"127.0.0.1:1"}, CA: []byte("PEM"), Key: []byte("key")}}
	maps.Copy(r.Options, w.options)
	for range n {
		r.Nodes = append(r.Nodes, wire.NodeID("boxes-"+strconv.Itoa(w.next)))
		r.Epochs = append(r.Epochs, 1)
		r.Places = append(r.Places, w.host)
		w.next++
	}
	return r
}

func (w *world) laws() {
	backendtest.Run(w.t, backendtest.Harness{
		Open:    func(*testing.T) backends.Backend { return w.open() },
		Request: func(_ *testing.T, token string, n int) backends.Request { return w.request(token, n) },
		Nodes:   func(*testing.T) int { return len(w.processes("node")) },
		Kill: func(t *testing.T, a backends.Alloc) {
			r, _ := parseHandle(a.Handle)
			var own struct{ PID int }
			if err := json.Unmarshal(r.Handle, &own); err != nil || own.PID <= 1 {
				t.Fatalf("no process in %q", r.Handle)
			}
			syscall.Kill(own.PID, syscall.SIGKILL)
		},
		Good: []backends.Options{{"hosts": []any{"a"}}, {"hosts": []any{"a", "b"}, "port": int64(22), "jump": "x"}},
		Bad: []backends.Options{{"hosts": "a"}, {"hosts": []any{}}, {"port": int64(0)}, {"port": "22"}, {"transport": "carrier pigeon"},
			{"nodes": int64(1)}, {"directory": int64(4), "user": true}},
		BadSubmit: func(t *testing.T, token string) backends.Request {
			r := w.request(token, 1)
			r.Options["directory"] = "/proc/no"
			return r
		},
		Bound: 20 * time.Second,
	})
	// What is left on the host is the binary.
	var left []string
	filepath.WalkDir(w.root, func(p string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			left = append(left, strings.TrimPrefix(p, w.root+"/"))
		}
		return nil
	})
	if len(left) != 1 || !strings.HasPrefix(left[0], "bin/") || !strings.HasSuffix(left[0], "/launcher") {
		w.t.Errorf("left on the host: %q, wanted the binary", left)
	}
	if _, err := os.Stat(filepath.Join(w.root, "hosts")); err == nil {
		w.t.Errorf("the directory of hosts is left")
	}
}

func TestLaws(t *testing.T) { newWorld(t).laws() }

// TestLawsOverSSH: the same over a real sshd.
func TestLawsOverSSH(t *testing.T) {
	l := testkit.SSHD(t)
	s := l.Start("box", testkit.ServerOptions{NoSFTP: true, Lines: []string{"MaxSessions 1", "AllowTcpForwarding no"}})
	w := newWorld(t)
	w.host = fmt.Sprintf("%s:%d", s.IP, s.Port)
	w.options = backends.Options{"identity": l.Key, "known_hosts": l.KnownHosts, "ssh_config": l.Config}
	w.dial = func() dialer { return network{dial.New(dial.Options{})} }
	w.laws()
}

// TestHostIsAway: a host that cannot be reached is an error to Submit, of which Find knows
// that nothing came of it, and no end to Status; when it is back it is asked again.
func TestHostIsAway(t *testing.T) {
	l := testkit.SSHD(t)
	s := l.Start("box", testkit.ServerOptions{})
	w := newWorld(t)
	w.host = fmt.Sprintf("%s:%d", s.IP, s.Port)
	w.options = backends.Options{"identity": l.Key, "known_hosts": l.KnownHosts, "ssh_config": l.Config}
	w.dial = func() dialer { return network{dial.New(dial.Options{})} }
	b := w.open()
	defer b.Close()
	a, err := b.Submit(t.Context(), w.request("first", 1))
	if err != nil {
		t.Fatal(err)
	}
	s.Stop()
	testkit.Eventually(t, testkit.Bound, func() string { // the end of the connection is seen
		st, err := b.Status(t.Context(), [][]byte{a[0].Handle})
		if err != nil || st[0].State != backends.Running || !strings.Contains(st[0].Why, "cannot be asked") {
			return fmt.Sprintf("a node whose host is away: %+v, %v", st, err)
		}
		return ""
	})
	if _, err := b.Submit(t.Context(), w.request("second", 1)); !errs.Retryable(err) {
		t.Errorf("submit to a host that is away: %v", err)
	}
	if found, err := b.Find(t.Context(), "lab", []string{backendtest.Token("second")}); err != nil || len(found) > 0 {
		t.Errorf("find of what was never sent: %v, %v", found, err)
	}
	if n := len(w.processes("node")); n != 1 {
		t.Errorf("%d nodes run when the connection is gone, wanted 1", n)
	}
	if err := b.Cancel(t.Context(), [][]byte{a[0].Handle}); err == nil {
		t.Error("the node of a host that is away was ended")
	}
	s.Restart()
	if err := b.Cancel(t.Context(), [][]byte{a[0].Handle}); err != nil {
		t.Errorf("cancel when the host is back: %v", err)
	}
	if st, err := b.Status(t.Context(), [][]byte{a[0].Handle}); err != nil || st[0].State != backends.Done {
		t.Errorf("after that: %+v, %v", st, err)
	}
}

// TestFailedNode: why a node ended comes from its log.
func TestFailedNode(t *testing.T) {
	w := newWorld(t)
	b := w.open()
	defer b.Close()
	r := w.request("failing", 1)
	r.Labels = map[string]string{"do": "exit"}
	a, err := b.Submit(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, testkit.Bound, func() string {
		st, err := b.Status(t.Context(), [][]byte{a[0].Handle})
		if err != nil || st[0].State != backends.Failed || !strings.Contains(st[0].Why, "its log ends: as told") {
			return fmt.Sprint(st, err)
		}
		return ""
	})
}
