package session

import (
	"bytes"
	"net"
	"testing"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
)

// Whatever comes first on a connection is either a hello or an error, in bounded memory.
func FuzzReadHello(f *testing.F) {
	f.Add(Config{Cluster: "lab", Name: "x"}.withDefaults().hello(purposeSession).append(nil))
	f.Add([]byte("LNCH\x02\x00\x00\x00\x01\x00\x00\x00\xc1"))
	f.Add([]byte("LNCH\x01\x00\x00\x00\xff\xff\x00\x00"))
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := readHello(bytes.NewReader(b))
		if err == nil && string(b[:4]) != Magic {
			t.Errorf("%q taken for a hello", b)
		}
		if err == nil && h.Major == wire.ProtocolMajor {
			again, err := readHello(bytes.NewReader(h.append(nil)))
			if err != nil || again.Body.Build != h.Body.Build || again.Minor != h.Minor {
				t.Errorf("%+v became %+v, %v", h, again, err)
			}
		}
	})
}

// A peer that has authenticated may still send anything: the session ends, or goes on,
// and never hangs, panics, or keeps more than its windows.
func FuzzFrames(f *testing.F) {
	frame := func(b []byte, typ, flags uint8, id uint32, body string) []byte {
		return append(appendHead(b, typ, flags, id, len(body)), body...)
	}
	f.Add(frame(frame(nil, muxOpen, 0, 1, "\x02\x00"), muxData, 0, 1, "hello"))
	f.Add(frame(frame(nil, muxOpen, 0, 1, "\x02\x00"), muxEnd, 3, 1, string(encodeCause(errs.New(errs.Lost, "x")))))
	f.Add(frame(frame(nil, muxPing, 0, 0, "12345678"), muxCredit, 0, 3, "\xff\xff\xff\xff"))
	f.Add(frame(nil, muxBye, 0, 0, "\xc1"))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		near, far := net.Pipe()
		cfg := Config{}.withDefaults()
		cfg.KeepAlive = time.Hour
		s := newSession(t.Context(), near, Peer{}, cfg, false)
		go func() { // an answer must not block us
			buf := make([]byte, 1024)
			for {
				if _, err := far.Read(buf); err != nil {
					return
				}
			}
		}()
		far.SetWriteDeadline(time.Now().Add(soon))
		if _, err := far.Write(b); isTimeout(err) {
			t.Errorf("it does not read: %v", err)
		}
		far.Close()
		select {
		case <-s.Done():
		case <-time.After(soon):
			t.Error("it does not end with its connection")
		}
		s.Close()
	})
}
