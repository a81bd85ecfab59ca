package channel_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"launcher/internal/errs"
	"launcher/shm/channel"
)

// TestMain makes this binary play the second process: what comes on the first channel, it
// writes to the second.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "channel-echo" {
		fmt.Println(echo(os.Args[2], os.Args[3]))
		return
	}
	os.Exit(m.Run())
}

func text(c *channel.Channel) string {
	a := c.Address()
	return fmt.Sprintf("%d:%d:%d", a.PID, a.FD, a.Token)
}

func opened(s string) (*channel.Channel, error) {
	var a channel.Address
	if _, err := fmt.Sscanf(s, "%d:%d:%d", &a.PID, &a.FD, &a.Token); err != nil {
		return nil, err
	}
	return channel.Open(a)
}

func echo(from, to string) error {
	ctx := context.Background()
	a, err := opened(from)
	if err != nil {
		return err
	}
	b, err := opened(to)
	if err != nil {
		return err
	}
	r, err := a.Reader(0)
	if err != nil {
		return err
	}
	w, err := b.Writer()
	if err != nil {
		return err
	}
	for {
		v, err := r.Read(ctx)
		if err != nil {
			return err
		}
		if err := w.Write(ctx, v); err != nil {
			return err
		}
	}
}

// inPython is echo with the Python SDK.
const inPython = `
import sys
from launcher import _serial, channel
a, b = (channel._open(*map(int, s.split(":"))) for s in sys.argv[1:])
r, w = a.reader(), b.writer()
try:
    while True:
        kind, form, data = r.take()
        w.put(kind, _serial.Encoded(form, len(data), bytes(data), [], []))
except channel.RayChannelError as e:
    print(e)
`

type pair struct {
	w    *channel.Writer
	r    *channel.Reader
	a    *channel.Channel
	cmd  *exec.Cmd
	said *bytes.Buffer
}

func start(t testing.TB, slots, size int, argv ...string) pair {
	t.Helper()
	if len(argv) == 0 {
		argv = []string{os.Args[0], "channel-echo"}
	}
	var p pair
	a, err := channel.Create(1, slots, size)
	if err != nil {
		t.Fatal(err)
	}
	b, err := channel.Create(1, slots, size)
	if err != nil {
		t.Fatal(err)
	}
	p.a, p.said = a, new(bytes.Buffer)
	if p.w, err = a.Writer(); err != nil {
		t.Fatal(err)
	}
	if p.r, err = b.Reader(0); err != nil {
		t.Fatal(err)
	}
	p.cmd = exec.Command(argv[0], append(argv[1:], text(a), text(b))...)
	p.cmd.Env = append(os.Environ(), "PYTHONPATH=../../python", "PYTHONDONTWRITEBYTECODE=1")
	p.cmd.Stdout, p.cmd.Stderr = p.said, os.Stderr
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.cmd.Process.Kill()
		p.cmd.Wait()
	})
	return p
}

func (p pair) echo(ctx context.Context, v channel.Value) (channel.Value, error) {
	if err := p.w.Write(ctx, v); err != nil {
		return channel.Value{}, err
	}
	return p.r.Read(ctx)
}

func bound(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestBetweenProcesses(t *testing.T) { there(t, start(t, 2, 4096)) }

func TestPython(t *testing.T) {
	if _, err := os.ReadFile("../../python/launcher/channel.py"); err != nil { // go test must know that its result depends on it
		t.Fatal(err)
	}
	if exec.Command("python3", "-c", "import sys; assert sys.version_info >= (3, 9)").Run() != nil || runtime.GOARCH != "amd64" {
		t.Skip("SKIP: no Python that has channels")
	}
	there(t, start(t, 2, 4096, "python3", "-c", inPython))
}

// there sends values there and back, and closes.
func there(t *testing.T, p pair) {
	ctx := bound(t)
	for i := range 300 {
		v := channel.Value{Kind: channel.Kind(i % 2), Form: uint32(i), Data: bytes.Repeat([]byte{byte(i)}, i*i)}
		got, err := p.echo(ctx, v)
		if err != nil || got.Kind != v.Kind || got.Form != v.Form || !bytes.Equal(got.Data, v.Data) {
			t.Fatalf("value %d: %d bytes, %v", i, len(got.Data), err)
		}
	}
	p.a.Close()
	if err := p.cmd.Wait(); err != nil || !strings.Contains(p.said.String(), "closed") {
		t.Fatal(err, p.said)
	}
	if err := p.w.Write(ctx, channel.Value{}); errs.KindOf(err) != errs.Lost {
		t.Fatal(err)
	}
}

func TestDeath(t *testing.T) {
	ctx, p := bound(t), start(t, 1, 100)
	if _, err := p.echo(ctx, channel.Value{Data: []byte("a")}); err != nil {
		t.Fatal(err)
	}
	p.cmd.Process.Kill() // a zombie then, which nobody waits for yet
	if _, err := p.r.Read(ctx); errs.KindOf(err) != errs.Lost || !strings.Contains(err.Error(), "gone") {
		t.Fatal(err)
	}
	for {
		if err := p.w.Write(ctx, channel.Value{}); errs.KindOf(err) == errs.Lost {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestReadersAndRoom(t *testing.T) {
	ctx := bound(t)
	c, err := channel.Create(3, 2, 8)
	if err != nil {
		t.Fatal(err)
	}
	w, err := c.Writer()
	if err != nil {
		t.Fatal(err)
	}
	var done [3]chan error
	for i := range done {
		done[i] = make(chan error, 1)
		r, err := c.Reader(i)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for n := range 1000 {
				v, err := r.Read(ctx)
				if err == nil && (v.Form != uint32(n) || len(v.Data) != n%200) {
					err = fmt.Errorf("value %d is %d", n, v.Form)
				}
				if err != nil {
					done[i] <- err
					return
				}
			}
			r.Release()
			done[i] <- nil
		}()
	}
	for n := range 1000 {
		if err := w.Write(ctx, channel.Value{Form: uint32(n), Data: make([]byte, n%200)}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range done {
		if err := <-done[i]; err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := w.Write(ctx, channel.Value{}); err != nil {
			t.Fatal(err)
		}
	}
	short, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
	defer cancel()
	if err := w.Write(short, channel.Value{}); errs.KindOf(err) != errs.Timeout {
		t.Fatal(err)
	}
}

func TestRefused(t *testing.T) {
	if _, err := channel.Create(0, 1, 1); errs.KindOf(err) != errs.Invalid {
		t.Error(err)
	}
	c, err := channel.Create(1, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	a := c.Address()
	a.Token++
	if _, err := channel.Open(a); errs.KindOf(err) != errs.Lost {
		t.Error(err)
	}
	if _, err := c.Reader(1); errs.KindOf(err) != errs.Invalid {
		t.Error(err)
	}
	if err := c.Free(); err != nil {
		t.Error(err)
	}
}

// BenchmarkHop is there and back between two processes, so two hops.
func BenchmarkHop(b *testing.B) {
	for _, size := range []int{8, 1 << 10, 1 << 20} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			p := start(b, 2, 1<<20)
			v := channel.Value{Data: make([]byte, size)}
			for b.Loop() {
				if _, err := p.echo(b.Context(), v); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(2*b.N), "us/hop")
		})
	}
}
