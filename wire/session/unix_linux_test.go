package session

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"launcher/internal/errs"
	"launcher/internal/sockpath"
	"launcher/wire/secure"
)

func (l *lab) serveUnix(path string, handle Handler) {
	l.Helper()
	ln, err := sockpath.Listen(path)
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { sockpath.Remove(path) })
	cfg := l.config(nil)
	cfg.Cluster, cfg.Role, cfg.Name = "lab", secure.RoleHead, "head"
	l.run(func(ctx context.Context) error { return ServeUnix(ctx, ln, cfg, handle) })
}

func TestUnix(t *testing.T) {
	l := newLab(t)
	for _, path := range []string{join(shortDir(t), "head.sock"), join(t.TempDir(), strings.Repeat("deep/", 0)+strings.Repeat("d", 110)+".sock")} {
		l.serveUnix(path, func(ctx context.Context, s *Session) {
			if p := s.Peer(); !p.Unix || p.PID != os.Getpid() || p.Role != secure.RoleClient || p.Name != "me" {
				t.Errorf("the server sees %+v", p)
			}
			_, st, err := s.Accept(ctx)
			if err != nil {
				return
			}
			st.Write([]byte("ok"))
			st.Close()
			<-ctx.Done()
		})
		s, err := DialUnix(l.context(), path, Config{Role: secure.RoleClient, Name: "me", Cluster: "lab"})
		if err != nil {
			t.Fatal(err)
		}
		if p := s.Peer(); !p.Unix || p.Role != secure.RoleHead || p.PID != os.Getpid() || p.Addr != path {
			t.Errorf("the client sees %+v", p)
		}
		st, _ := s.Open(l.context(), 1)
		b := make([]byte, 2)
		if _, err := st.Read(b); err != nil || string(b) != "ok" {
			t.Errorf("read %q, %v", b, err)
		}
		s.Close()
		_, err = DialUnix(l.context(), path, Config{Cluster: "another"})
		l.wantErr(err, errs.Permission, "cluster lab, not another")
	}
	_, err := DialUnix(l.context(), join(t.TempDir(), "none.sock"), Config{})
	l.wantErr(err, errs.NotFound)
}

// Another user is refused by who it is, even where the modes of files would let it in,
// and is told so.
func TestRootAnotherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can become another user")
	}
	l := newLab(t)
	path := join(shortDir(t), "head.sock")
	l.serveUnix(path, func(ctx context.Context, s *Session) { t.Error("another user was let in") })
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path[:strings.LastIndexByte(path, '/')], 0o755); err != nil {
		t.Fatal(err)
	}
	exe, _ := os.Executable()
	bin := join(shortDir(t), "test") // where nobody may execute it
	b, err := os.ReadFile(exe)
	if err == nil {
		err = os.WriteFile(bin, b, 0o755)
	}
	if err == nil {
		err = os.Chmod(bin[:strings.LastIndexByte(bin, '/')], 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(l.context(), bin, "dial-unix", path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"the server: permission", "user 65534 is refused", "a cluster of user 0", "the client: permission", "served by user 0, not by you (65534)"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q is not in what the other user was told:\n%s", want, out)
		}
	}
	l.eventually("it is logged", func() bool { return strings.Contains(strings.Join(l.log.all(), ""), "user 65534 is refused") })
}

// A socket that serves several protocols looks at the first bytes.
func TestSniff(t *testing.T) {
	l := newLab(t)
	path := join(shortDir(t), "agent.sock")
	ln, err := sockpath.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	l.run(func(ctx context.Context) error {
		defer ln.Close()
		for range 2 {
			c, err := ln.Accept()
			if err != nil {
				return err
			}
			head, c, err := Sniff(c, 4, soon)
			if err != nil {
				return err
			}
			if string(head) != Magic {
				fmt.Fprintf(c, "you said %q", head)
				c.Close()
				continue
			}
			cfg := Config{Cluster: "lab", Role: secure.RoleAgent, Name: "local-0"}
			if err := ServeConn(ctx, c, cfg, func(ctx context.Context, s *Session) { <-ctx.Done() }); err != nil {
				return err
			}
		}
		return nil
	})
	c, err := sockpath.Dial(l.context(), path)
	if err != nil {
		t.Fatal(err)
	}
	c.Write([]byte("GET / HTTP/1.0\r\n\r\n"))
	b := make([]byte, 64)
	n, _ := c.Read(b)
	if string(b[:n]) != `you said "GET "` {
		t.Errorf("got %q", b[:n])
	}
	c.Close()
	s, err := DialUnix(l.context(), path, Config{Role: secure.RoleClient})
	if err != nil {
		t.Fatal(err)
	}
	if p := s.Peer(); p.Role != secure.RoleAgent || p.Name != "local-0" {
		t.Errorf("peer %+v", p)
	}
	s.Close()
}
