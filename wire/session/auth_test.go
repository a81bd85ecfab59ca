package session

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/secure"
)

func idle(ctx context.Context, s *Session) { <-ctx.Done() }

func TestWhoIsLetIn(t *testing.T) {
	l := newLab(t)
	addr := l.serve(l.config(l.head), idle)
	try := func(id *secure.Identity, want secure.Role) error {
		s, err := Dial(l.context(), []string{addr}, l.config(id), want)
		if err == nil {
			s.Close()
		}
		return err
	}
	me := l.identity(secure.RoleClient, "me")
	if err := try(me, secure.RoleHead); err != nil {
		t.Fatalf("a client of the cluster: %v", err)
	}
	l.wantErr(try(me, secure.RoleAgent), errs.Permission, "is the head head of cluster lab, not the agent")

	// Another authority, of the same name: it neither believes nor is believed.
	other, _ := secure.NewAuthority("lab")
	thief, _ := other.IssueSelf(secure.RoleClient, "me", 0)
	l.wantErr(try(thief, secure.RoleHead), errs.Permission, "another authority signed it", "hint:")

	// A process that shows a certificate of another authority but believes ours.
	tc := me.ClientTLS(secure.RoleHead)
	tc.GetClientCertificate = thief.ClientTLS(secure.RoleHead).GetClientCertificate
	_, _, err := dialTLS(l.context(), addr, l.config(me).withDefaults(), tc, purposeSession, secure.RoleHead)
	l.wantErr(err, errs.Permission, "refuses", "another authority signed it")

	// None at all.
	tc.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &tls.Certificate{}, nil }
	_, _, err = dialTLS(l.context(), addr, l.config(me).withDefaults(), tc, purposeSession, secure.RoleHead)
	l.wantErr(err, errs.Permission, "no certificate of cluster lab was shown")

	// One that has run out.
	old, _ := l.ca.IssueSelf(secure.RoleClient, "me", time.Millisecond)
	time.Sleep(time.Until(old.NotAfter())) // sleep: until a moment, a millisecond away
	l.wantErr(try(old, secure.RoleHead), errs.Permission, "is valid from", "compare the clocks")

	// A client's certificate does not make a server.
	fake := l.serve(l.config(me), idle)
	_, err = Dial(l.context(), []string{fake}, l.config(me), secure.RoleClient)
	l.wantErr(err, errs.Permission, "refused")
}

func TestAllow(t *testing.T) {
	l := newLab(t)
	cfg := l.config(l.head)
	cfg.Allow = func(p Peer) error {
		if p.Role == secure.RoleAgent && p.Name == "local-1" {
			return nil
		}
		return errs.New(errs.Fenced, "%s has been replaced", p.Name)
	}
	addr := l.serve(cfg, idle)
	s, err := Dial(l.context(), []string{addr}, l.config(l.identity(secure.RoleAgent, "local-1")), secure.RoleHead)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	_, err = Dial(l.context(), []string{addr}, l.config(l.identity(secure.RoleAgent, "local-2")), secure.RoleHead)
	l.wantErr(err, errs.Fenced, "local-2 has been replaced")
}

// Both sides say what they are and what to do, whichever is the newer.
func TestVersions(t *testing.T) {
	for _, c := range []struct{ client, server uint16 }{{1, 2}, {2, 1}} {
		l := newLab(t)
		sc, cc := l.config(l.head), l.config(l.identity(secure.RoleClient, "me"))
		sc.major, sc.Version = c.server, "v-server"
		cc.major, cc.Version = c.client, "v-client"
		addr := l.serve(sc, idle)
		_, err := Dial(l.context(), []string{addr}, cc, secure.RoleHead)
		l.wantErr(err, errs.Version, "this is launcher v-client, which speaks protocol "+fmt.Sprint(c.client),
			"is launcher v-server, which speaks protocol "+fmt.Sprint(c.server), "hint: use")
		l.eventually("the server logs it", func() bool {
			return strings.Contains(strings.Join(l.log.all(), "\n"), fmt.Sprintf("this is launcher v-server, which speaks protocol %d.0; the other side is launcher v-client, which speaks protocol %d.0", c.server, c.client))
		})
	}
}

// Another major version may have another body behind the same header.
func TestUnreadableVersion(t *testing.T) {
	l := newLab(t)
	a, b := tcpPair(t)
	go func() {
		readHello(b)
		b.Write([]byte("LNCH\x07\x00\x03\x00\x04\x00\x00\x00\xc1\xc1\xc1\xc1"))
	}()
	a.SetDeadline(time.Now().Add(soon))
	_, err := greetDial(a, l.config(l.head).withDefaults(), purposeSession, "the head")
	l.wantErr(err, errs.Version, "protocol 7.3", "unknown")
}

func TestGarbageOnThePort(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	cfg := l.config(l.head)
	cfg.Handshake = 8 * time.Second
	addr := l.serve(cfg, idle)
	var wg sync.WaitGroup
	send := func(name string, b []byte) {
		wg.Go(func() {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			c.Write(b)
			c.SetReadDeadline(time.Now().Add(soon))
			if _, err := io.Copy(io.Discard, c); errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
				t.Errorf("%s: the connection is kept", name)
			}
		})
	}
	send("http", []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
	send("ssh", []byte("SSH-2.0-OpenSSH_9.2\r\n"))
	send("plain", []byte("LNCH\x01\x00\x00\x00\x00\x00\x00\x00"))
	send("zeros", make([]byte, 100_000))
	send("long record", append([]byte{22, 3, 1, 0xff, 0xff}, make([]byte, 70_000)...))
	send("silent", nil)
	send("slow", []byte{22, 3, 1})
	wg.Wait()
	l.eventually("it is logged", func() bool { return len(l.log.all()) > 0 })
	if n := len(l.log.all()); n != 1 {
		t.Errorf("%d lines in the log, wanted one for the address: %q", n, l.log.all())
	}
	l.dial(addr).Close() // and it serves on
}

func isTimeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

// Garbage behind a good TLS handshake, from one who may be there and one who may not.
func TestGarbageInside(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	cfg := l.config(l.head)
	cfg.Handshake = 8 * time.Second
	cfg.Authority, cfg.Joiner = l.ca, admit(func(secure.JoinRequest) error { t.Error("garbage was admitted"); return nil })
	addr := l.serve(cfg, idle)
	me := l.identity(secure.RoleClient, "me")
	var wg sync.WaitGroup
	defer wg.Wait()
	join := Config{Cluster: "lab"}.withDefaults().hello(purposeJoin).append(nil)
	for name, b := range map[string][]byte{
		"nothing":      nil,
		"text":         []byte("hello there, how are you"),
		"huge hello":   []byte("LNCH\x01\x00\x00\x00\xff\xff\x00\x00"),
		"bad body":     []byte("LNCH\x01\x00\x00\x00\x02\x00\x00\x00\xc1\xc1"),
		"huge frame":   append(join[:len(join):len(join)], 0xff, 0xff, 0xff, 0x00, 0x10, 0x01, 0, 0),
		"wrong frame":  append(join[:len(join):len(join)], wire.AppendFrame(nil, 0x310, nil)...),
		"bad request":  append(join[:len(join):len(join)], wire.AppendFrame(nil, msgJoin, []byte{0xc1})...),
		"no signature": append(join[:len(join):len(join)], wire.AppendFrame(nil, msgJoin, wire.Marshal(secure.JoinRequest{Node: "x"}))...),
	} {
		wg.Go(func() {
			c, err := tls.Dial("tcp", addr, me.ClientTLS(secure.RoleHead))
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			defer c.Close()
			c.Write(b)
			c.SetReadDeadline(time.Now().Add(soon))
			if _, err := io.Copy(io.Discard, c); isTimeout(err) {
				t.Errorf("%s: the connection is kept", name)
			}
		})
	}
}

// Many who connect and say nothing do not keep others out.
func TestDoorMakesRoom(t *testing.T) {
	var d door
	conns := make([]net.Conn, maxGreeting+10)
	for i := range conns {
		var far net.Conn
		conns[i], far = net.Pipe()
		defer far.Close()
		leave := d.enter(conns[i])
		if i == 5 {
			leave()
		}
	}
	closed := 0
	for i, c := range conns {
		c.SetReadDeadline(time.Unix(1, 0))
		if _, err := c.Read(make([]byte, 1)); errors.Is(err, io.ErrClosedPipe) {
			closed++
			if i > 10 {
				t.Errorf("connection %d was closed before older ones", i)
			}
		}
	}
	if closed != 9 || len(d.waiting) != maxGreeting {
		t.Errorf("%d closed, %d waiting", closed, len(d.waiting))
	}
	d.clear()
}

type admit func(secure.JoinRequest) error

func (f admit) Admit(r secure.JoinRequest) error { return f(r) }

func TestJoin(t *testing.T) {
	l := newLab(t)
	cfg := l.config(l.head)
	cfg.Authority = l.ca
	key := secure.NewKey()
	used := map[string]bool{}
	cfg.Joiner = admit(func(r secure.JoinRequest) error {
		if !secure.SameKey(key, r.Key) || used[r.Node] {
			return errs.New(errs.Permission, "the join key is not valid")
		}
		used[r.Node] = true
		return nil
	})
	addr := l.serve(cfg, func(ctx context.Context, s *Session) { <-ctx.Done() })
	req := secure.JoinRequest{Key: key, Node: "local-0", Epoch: 1, Token: "tok"}
	try := func(ca []byte, req secure.JoinRequest) (Joined, error) {
		return Join(l.context(), []string{addr}, ca, Config{Cluster: "lab", Version: "v1"}, req)
	}
	bad := req
	bad.Key = secure.NewKey()
	_, err := try(l.ca.CA(), bad)
	l.wantErr(err, errs.Permission, "node local-0 cannot join cluster lab", "the join key is not valid")
	bad = req
	bad.Node = "../etc"
	_, err = try(l.ca.CA(), bad)
	l.wantErr(err, errs.Invalid, "cannot be put into a certificate")

	// To another head the key is never told.
	other, _ := secure.NewAuthority("lab")
	_, err = try(other.CA(), req)
	l.wantErr(err, errs.Permission, "another authority signed it")
	if len(used) != 0 {
		t.Fatal("the key was used up")
	}

	j, err := try(l.ca.CA(), req)
	if err != nil {
		t.Fatal(err)
	}
	if s := j.Identity.Subject(); s != (secure.Subject{Cluster: "lab", Role: secure.RoleAgent, Name: "local-0"}) || j.Clock.Abs() > time.Minute {
		t.Errorf("joined as %v, clock %s", s, j.Clock)
	}
	_, err = try(l.ca.CA(), req)
	l.wantErr(err, errs.Permission, "the join key is not valid")

	s, err := Dial(l.context(), []string{addr}, l.config(j.Identity), secure.RoleHead)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	// An agent listens too, and others find that it is one.
	agent := l.serve(l.config(j.Identity), idle)
	s, err = Dial(l.context(), []string{agent}, l.config(l.head), secure.RoleAgent)
	if err != nil {
		t.Fatal(err)
	}
	if p := s.Peer(); p.Name != "local-0" {
		t.Errorf("dialled %+v", p)
	}
	s.Close()
	// But it lets nobody join, and renews nothing.
	_, err = Join(l.context(), []string{agent}, l.ca.CA(), Config{Cluster: "lab"}, req)
	l.wantErr(err, errs.Permission, "not the head")
	before := j.Identity.NotAfter()
	if err := j.Identity.Renew(l.context(), Renewer(func() []string { return []string{agent, addr} }, l.config(j.Identity))); err != nil {
		t.Errorf("renewal: %v", err)
	}
	if !j.Identity.NotAfter().After(before) && j.Identity.NotAfter() != before {
		t.Error("the renewed certificate ends earlier")
	}
}

// The head may refuse to renew what is no member any more.
func TestMayRenew(t *testing.T) {
	l := newLab(t)
	cfg := l.config(l.head)
	cfg.Authority = l.ca
	cfg.MayRenew = func(p Peer, r secure.RenewRequest) error {
		if p.Role == secure.RoleAgent && p.Name == "gone" && r.Epoch == 3 && r.Token == "tok" {
			return errs.New(errs.Fenced, "node %s is no member", p.Name)
		}
		return nil
	}
	addr := l.serve(cfg, func(ctx context.Context, s *Session) { <-ctx.Done() })
	for name, want := range map[string]errs.Kind{"here": errs.Unknown, "gone": errs.Fenced} {
		id, err := l.ca.IssueSelf(secure.RoleAgent, name, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		ac := l.config(id)
		ac.Epoch, ac.Token = 3, "tok"
		err = id.Renew(l.context(), Renewer(func() []string { return []string{addr} }, ac))
		if (want == errs.Unknown) != (err == nil) || err != nil && !errs.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// With certificates of a few seconds, a session that is open stays open and new ones can
// be made, over several lives.
func TestRenewal(t *testing.T) {
	t.Parallel()
	const life = 10 * time.Second
	l := newLab(t)
	head, err := l.ca.IssueSelf(secure.RoleHead, "head", life)
	if err != nil {
		t.Fatal(err)
	}
	cfg := l.config(head)
	cfg.Authority, cfg.CertLife = l.ca, life
	cfg.Joiner = admit(func(secure.JoinRequest) error { return nil })
	addr := l.serve(cfg, func(ctx context.Context, s *Session) {
		for {
			_, st, err := s.Accept(ctx)
			if err != nil {
				return
			}
			io.Copy(st, st)
			st.Close()
		}
	})
	addrs := []string{addr}
	j, err := Join(l.context(), addrs, l.ca.CA(), Config{Cluster: "lab"}, secure.JoinRequest{Node: "local-0"})
	if err != nil {
		t.Fatal(err)
	}
	first := j.Identity.NotAfter()
	if left := time.Until(first); left > life+time.Second {
		t.Fatalf("the certificate lives %s", left)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	ac := l.config(j.Identity)
	wg.Go(func() { j.Identity.Keep(ctx, Renewer(func() []string { return addrs }, ac), ac.Log) })
	wg.Go(func() { head.Keep(ctx, l.ca.Renewer(head.Subject(), life), ac.Log) })

	old, err := Dial(l.context(), addrs, ac, secure.RoleHead)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	echo := func(s *Session) error {
		st, err := s.Open(l.context(), 1)
		if err != nil {
			return err
		}
		defer st.Close()
		st.Write([]byte("x"))
		st.CloseWrite()
		b, err := io.ReadAll(st)
		if err == nil && !bytes.Equal(b, []byte("x")) {
			err = fmt.Errorf("echo gave %q", b)
		}
		return err
	}
	for end := first.Add(life / 2); time.Now().Before(end); time.Sleep(life / 20) { // sleep: the pace of a run over several lives
		s, err := Dial(l.context(), addrs, ac, secure.RoleHead)
		if err != nil {
			t.Fatalf("a new session: %v", err)
		}
		if err := errors.Join(echo(s), echo(old)); err != nil {
			t.Fatal(err)
		}
		s.Close()
	}
	if !j.Identity.NotAfter().After(first) || !head.NotAfter().After(first) {
		t.Error("certificates were not renewed")
	}
}
