package session

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"launcher/wire/secure"
)

// benchPair gives both ends of a session over a kind of connection.
func benchPair(b *testing.B, over string) (*Session, *Session) {
	b.Helper()
	ca, err := secure.NewAuthority("lab")
	if err != nil {
		b.Fatal(err)
	}
	network, addr := "tcp", "127.0.0.1:0"
	if over == "unix" {
		network, addr = "unix", b.TempDir()+"/s"
	}
	ln, err := net.Listen(network, addr)
	if err != nil {
		b.Fatal(err)
	}
	got := make(chan *Session, 1)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	handle := func(ctx context.Context, s *Session) { got <- s; <-ctx.Done() }
	head, _ := ca.IssueSelf(secure.RoleHead, "head", 0)
	me, _ := ca.IssueSelf(secure.RoleClient, "me", 0)
	go func() {
		if over == "unix" {
			done <- ServeUnix(ctx, ln, Config{Role: secure.RoleHead}, handle)
		} else {
			done <- Serve(ctx, ln, Config{Identity: head}, handle)
		}
	}()
	var c *Session
	if over == "unix" {
		c, err = DialUnix(ctx, ln.Addr().String(), Config{})
	} else {
		c, err = Dial(ctx, []string{ln.Addr().String()}, Config{Identity: me}, secure.RoleHead)
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close(); cancel(); <-done })
	return c, <-got
}

func BenchmarkThroughput(b *testing.B) {
	for _, over := range []string{"tls", "unix"} {
		b.Run(over, func(b *testing.B) {
			c, s := benchPair(b, over)
			a, err := c.Open(b.Context(), 1)
			if err != nil {
				b.Fatal(err)
			}
			_, z, err := s.Accept(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			const block = 1 << 20
			buf, in := make([]byte, block), make([]byte, block)
			done := make(chan error, 1)
			b.SetBytes(block)
			go func() {
				for {
					if _, err := io.ReadFull(z, in); err != nil {
						done <- err
						return
					}
				}
			}()
			for b.Loop() {
				if _, err := a.Write(buf); err != nil {
					b.Fatal(err)
				}
			}
			a.CloseWrite()
			<-done
		})
	}
	b.Run("plain-tcp", func(b *testing.B) { // the limit in the same run
		ln, _ := net.Listen("tcp", "127.0.0.1:0")
		defer ln.Close()
		done := make(chan struct{})
		go func() {
			defer close(done)
			z, err := ln.Accept()
			if err != nil {
				return
			}
			in := make([]byte, 1<<20)
			for {
				if _, err := io.ReadFull(z, in); err != nil {
					return
				}
			}
		}()
		a, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		buf := make([]byte, 1<<20)
		b.SetBytes(1 << 20)
		for b.Loop() {
			a.Write(buf)
		}
		a.Close()
		<-done
	})
}

func BenchmarkRoundTrip(b *testing.B) {
	for _, over := range []string{"tls", "unix"} {
		b.Run(over, func(b *testing.B) {
			c, s := benchPair(b, over)
			a, _ := c.Open(b.Context(), 1)
			_, z, err := s.Accept(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			go func() {
				for {
					typ, body, err := z.ReadMsg()
					if err != nil || z.WriteRaw(typ, body) != nil {
						return
					}
				}
			}()
			msg := make([]byte, 64)
			for b.Loop() {
				if err := a.WriteRaw(1, msg); err != nil {
					b.Fatal(err)
				}
				if _, _, err := a.ReadMsg(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDial(b *testing.B) {
	ca, _ := secure.NewAuthority("lab")
	head, _ := ca.IssueSelf(secure.RoleHead, "head", 0)
	me, _ := ca.IssueSelf(secure.RoleClient, "me", 0)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, ln, Config{Identity: head}, idle) }()
	for b.Loop() {
		s, err := Dial(ctx, []string{ln.Addr().String()}, Config{Identity: me}, secure.RoleHead)
		if err != nil {
			b.Fatal(err)
		}
		s.Close()
	}
	cancel()
	<-done
}
