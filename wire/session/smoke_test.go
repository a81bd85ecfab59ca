package session

import (
	"context"
	"net"
	"testing"

	"launcher/wire/secure"
)

func TestSmoke(t *testing.T) {
	a, err := secure.NewAuthority("lab")
	if err != nil {
		t.Fatal(err)
	}
	head, _ := a.IssueSelf(secure.RoleHead, "head", 0)
	cl, _ := a.IssueSelf(secure.RoleClient, "me", 0)
	ln, _ := net.Listen("tcp", "127.0.0.1:0")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, ln, Config{Identity: head}, func(ctx context.Context, s *Session) {
			for {
				_, st, err := s.Accept(ctx)
				if err != nil {
					t.Log("server", err)
					return
				}
				typ, body, err := st.ReadMsg()
				if err != nil {
					t.Error(err)
				}
				st.WriteRaw(typ+1, body)
				st.Close()
			}
		})
	}()
	s, err := Dial(ctx, []string{ln.Addr().String()}, Config{Identity: cl}, secure.RoleHead)
	if err != nil {
		t.Fatal(err)
	}
	st, err := s.Open(ctx, 2)
	if err != nil {
		t.Fatal(err)
	}
	st.WriteMsg(7, "hello")
	typ, body, err := st.ReadMsg()
	t.Log(typ, string(body), err, s.Peer())
	_, _, err = st.ReadMsg()
	t.Log(err)
	st.Close()
	s.Close()
	t.Log(s.Err())
	cancel()
	t.Log(<-done)
}
