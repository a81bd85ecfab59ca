package host

import (
	"bufio"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"launcher/backends"
	"launcher/internal/errs"
	"launcher/internal/sockpath"
	"launcher/internal/testkit"
	"launcher/wire"
	"launcher/wire/session"
)

func server(t testing.TB) *Server {
	t.Helper()
	s, err := NewServer(t.TempDir(), "/bin/false")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// pair connects a client to the server over pipes, as an ssh channel does.
func pair(t *testing.T, s *Server, r Router) *Client {
	t.Helper()
	theirs, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	in, ours, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(t.Context(), session.Piped(theirs, ours)) }()
	c, err := Dial(t.Context(), session.Piped(in, out), "box", r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		<-served
	})
	return c
}

func TestFacts(t *testing.T) {
	s := server(t)
	f, err := pair(t, s, nil).Facts(t.Context())
	if err != nil || f.Root != s.root || f.PID != os.Getpid() || f.Name != s.name {
		t.Errorf("facts %+v, %v", f, err)
	}
}

// TestForeign: what is another host's or another cluster's is not touched.
func TestForeign(t *testing.T) {
	c := pair(t, server(t), nil)
	for _, h := range []string{
		`{"v":1,"dir":"/etc","node":"box-0","pid":99999,"token":"t"}`,
		`{"v":1,"dir":"` + t.TempDir() + `/hosts/other/0123456789abcdef/clusters/lab/nodes","node":"box-0","pid":99999,"token":"t"}`,
		`{"v":1,"dir":"/","node":"..","pid":99999,"token":"t"}`, "garbage",
	} {
		if err := c.Forget(t.Context(), "0123456789abcdef", [][]byte{[]byte(h)}); !errs.Is(err, errs.Invalid) {
			t.Errorf("forget of %s: %v", h, err)
		}
	}
	if _, err := c.Find(t.Context(), "../../etc", "lab", []string{"t"}); !errs.Is(err, errs.Invalid) {
		t.Errorf("a cluster's ID that is a path: %v", err)
	}
	r := backends.Request{Token: "t", Cluster: "../lab", Nodes: []wire.NodeID{"box-0"}, Epochs: []wire.Epoch{1}}
	if _, err := c.Submit(t.Context(), "0123456789abcdef", r); !errs.Is(err, errs.Invalid) {
		t.Errorf("a cluster's name that is a path: %v", err)
	}
}

// TestRoute: a node's process reaches the head over the broker's connection.
func TestRoute(t *testing.T) {
	s := server(t)
	dir := filepath.Join(s.dir("0123456789abcdef"), "clusters", "lab", "nodes")
	node := filepath.Join(dir, "box-0")
	if err := os.MkdirAll(node, 0o700); err != nil {
		t.Fatal(err)
	}
	asked := make(chan string, 1)
	c := pair(t, s, func(_ context.Context, cluster, to string) (net.Conn, error) {
		asked <- cluster + " " + to
		near, far := net.Pipe()
		go func() { // the head answers a line in capitals
			line, _ := bufio.NewReader(far).ReadString('\n')
			_, _ = io.WriteString(far, strings.ToUpper(line))
			far.Close()
		}()
		return near, nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	watched := make(chan error, 1)
	h := []byte(`{"v":1,"dir":"` + dir + `","node":"box-0","pid":` + "1000000000" + `,"token":"t"}`)
	go func() { watched <- c.Watch(ctx, "0123456789abcdef", [][]byte{h}, func(int) bool { return true }) }()
	path := filepath.Join(node, wire.RouteSocket)
	var conn net.Conn
	testkit.Eventually(t, testkit.Bound, func() string {
		var err error
		if conn, err = sockpath.Dial(t.Context(), path); err != nil {
			return err.Error()
		}
		return ""
	})
	if _, err := io.WriteString(conn, wire.RouteHead+"\nhello\n"); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); string(got) != "HELLO\n" {
		t.Errorf("the head's answer: %q, %v", got, err)
	}
	if got := <-asked; got != "lab head" {
		t.Errorf("asked for %q", got)
	}
	cancel()
	if err := <-watched; err != nil {
		t.Errorf("watch: %v", err)
	}
	testkit.Eventually(t, testkit.Bound, func() string {
		if _, err := os.Lstat(path); err == nil {
			return "the socket is left"
		}
		return ""
	})
}

// FuzzCall: whatever comes over the wire is answered or refused.
func FuzzCall(f *testing.F) {
	f.Add(uint16(msgFind), wire.Marshal(find{"0123456789abcdef", "lab", []string{"t"}}))
	f.Add(uint16(msgStatus), wire.Marshal(handles{"0123456789abcdef", [][]byte{[]byte("{}")}}))
	f.Add(uint16(msgForget), []byte{0x93, 0xa1})
	s := server(f)
	f.Fuzz(func(t *testing.T, typ uint16, body []byte) {
		if typ == msgSubmit || typ == msgCancel { // real ones start and end processes
			typ = msgFind
		}
		_, _ = s.call(t.Context(), t.Context(), typ, body)
	})
}
