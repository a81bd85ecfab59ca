package testkit

import (
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Cable is a link in user space, between two TAPs, on which every frame takes a while.
type Cable struct {
	Delay time.Duration // each way
}

// inFlight is how many frames a cable holds each way; more are lost, as in a full queue.
const inFlight = 4096

type frame struct {
	due  time.Time
	data []byte
}

// lay makes the cable between two spaces; it is there until the test ends.
func (c *Cable) lay(t testing.TB, a *space, nameA string, b *space, nameB string) {
	t.Helper()
	x, y := tap(t, a, nameA), tap(t, b, nameB)
	var done []chan struct{}
	for _, way := range [][2]*os.File{{x, y}, {y, x}} {
		q := make(chan frame, inFlight)
		read, wrote := make(chan struct{}), make(chan struct{})
		done = append(done, read, wrote)
		go func() {
			defer close(read)
			defer close(q)
			buf := make([]byte, 64<<10)
			for {
				n, err := way[0].Read(buf)
				if err != nil {
					if isDown(err) {
						time.Sleep(time.Millisecond) // sleep: a link that is down cannot be waited for
						continue
					}
					return
				}
				select {
				case q <- frame{time.Now().Add(c.Delay), append([]byte(nil), buf[:n]...)}:
				default:
				}
			}
		}()
		go func() {
			defer close(wrote)
			for f := range q {
				time.Sleep(time.Until(f.due)) // sleep: the delay itself
				_, _ = way[1].Write(f.data)
			}
		}()
	}
	t.Cleanup(func() {
		_, _ = x.Close(), y.Close()
		for _, d := range done {
			<-d
		}
	})
}

// isDown: a TAP that is down gives EIO.
func isDown(err error) bool {
	pe, ok := err.(*os.PathError)
	return ok && pe.Err == unix.EIO
}

// tap makes a TAP in a space's network.
func tap(t testing.TB, s *space, name string) *os.File {
	t.Helper()
	type result struct {
		f   *os.File
		err error
	}
	got := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends in the other network
		f, err := openTap("/proc/"+s.pid()+"/ns/net", name)
		got <- result{f, err}
	}()
	r := <-got
	if r.err != nil {
		t.Skipf("SKIP: no TAP devices here: %v", r.err)
	}
	return r.f
}

func openTap(ns, name string) (*os.File, error) {
	fd, err := unix.Open(ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	dev, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(dev, unix.TUNSETIFF, req)
	}
	if err != nil {
		_ = unix.Close(dev)
		return nil, err
	}
	return os.NewFile(uintptr(dev), name), nil
}
