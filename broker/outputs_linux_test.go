package broker

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"launcher/wire"
	"launcher/wire/bundle"
	"launcher/wire/secure"
	"launcher/wire/session"
)

// TestBringSlowly: what has all arrived is not sent again because it takes the broker long to
// put it where it belongs.
func TestBringSlowly(t *testing.T) {
	from := t.TempDir()
	if err := os.WriteFile(filepath.Join(from, "x"), []byte("of a task"), 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			cfg := session.Config{Role: secure.RoleClient, Name: "broker"}
			done <- session.ServeTrusted(ctx, a, cfg, func(ctx context.Context, s *session.Session) {
				_ = s.Each(ctx, func(_ uint16, st *session.Stream) {
					defer st.Close()
					if _, _, err := st.ReadMsg(); err != nil {
						t.Error(err)
					}
					if _, err := io.Copy(io.Discard, st); err != nil {
						t.Error(err)
					}
					time.Sleep(10 * outputsPause) // sleep: a slow disk, in no time
					_ = st.WriteMsg(wire.MsgOK, bundle.Came{Files: 1})
				})
			})
		}()
		s, err := session.DialTrusted(ctx, b, session.Config{Role: secure.RoleHead, Name: "head"}, "the broker")
		if err != nil {
			t.Fatal(err)
		}
		r := NewRemote(nil)
		r.cur = s
		if came, err := r.Bring(ctx, wire.Into{Dir: "/a", Token: "b", Tag: "c"}, from); err != nil || came.Files != 1 {
			t.Errorf("%+v came, %v", came, err)
		}
		_ = s.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
