package detect

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
)

// crowd is a /proc of processes with given users; users other than this one need chown, so
// the tests pretend that this process is somebody else instead.
type crowd struct {
	t    *testing.T
	root string
	up   float64
	all  int64
}

func newCrowd(t *testing.T) *crowd {
	c := &crowd{t: t, root: t.TempDir(), up: 1000}
	c.step(0, 0)
	return c
}

func (c *crowd) write(name, text string) {
	c.t.Helper()
	path := filepath.Join(c.root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// step lets time pass, in which the machine was busy for so many core seconds.
func (c *crowd) step(seconds, busy float64) {
	c.up += seconds
	c.all += int64(busy * tick)
	c.write("proc/uptime", fmt.Sprintf("%.2f 0.00\n", c.up))
	c.write("proc/stat", fmt.Sprintf("cpu  %d 0 0 777 5 6 7 0 0 0\ncpu0 1 1 1 1\n", c.all))
}

func (c *crowd) process(pid, parent int, began, own, reaped float64, cpu, flags int) {
	c.write("proc/"+strconv.Itoa(pid)+"/stat", fmt.Sprintf("%d (a (b) c) R %d 1 1 0 -1 %d 0 0 0 0 %d 0 %d 0 20 0 1 0 %d 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 17 %d 0 0\n",
		pid, parent, flags, int64(own*tick), int64(reaped*tick), int64(began*tick), cpu))
}

func (c *crowd) gone(pid int) {
	if err := os.RemoveAll(filepath.Join(c.root, "proc", strconv.Itoa(pid))); err != nil {
		c.t.Fatal(err)
	}
}

// TestOthers: what other users' processes use of the cores is counted when they go on, and
// for a while after they have stopped.
func TestOthers(t *testing.T) {
	c := newCrowd(t)
	o := NewOthers(c.root)
	o.uid = os.Getuid() + 1 // what this process owns is another's
	now := int64(0)
	look := func() (int, []int) { now += 5e9; return o.Look(now) }
	c.process(10, 1, 5, 100, 0, 3, 0)
	c.process(11, 2, 5, 100, 0, 1, 0x00200040) // a thread of the kernel
	used := 100.0
	want := []int{0, 0, 0, 2, 2, 2} // 1.5 cores: two
	for i, n := range want {
		got, on := look()
		if got != n || i > 0 && !slices.Equal(on, []int{3}) {
			t.Fatalf("look %d: %d cores on %v, want %d", i, got, on, n)
		}
		used += 7.5
		c.step(5, 10)
		c.process(10, 1, 5, used, 0, 3, 0)
		c.process(11, 2, 5, used, 0, 1, 0x00200040)
	}
	// It pauses for less than half a minute: the cores stay its own.
	for range dropAfter { // the first of them sees the last of it
		if got, _ := look(); got != 2 {
			t.Fatalf("in a pause %d cores", got)
		}
		c.step(5, 0)
	}
	if got, _ := look(); got != 0 {
		t.Errorf("after the pause %d cores", got)
	}
}

// TestOthersChildren: builds are many short processes; what they used is their parent's
// when they have ended, and counts once.
func TestOthersChildren(t *testing.T) {
	c := newCrowd(t)
	o := NewOthers(c.root)
	o.uid = os.Getuid() + 1
	if os.Getuid() == 0 {
		t.Skip("what root's processes have reaped is not counted: it reaps everybody's")
	}
	c.process(10, 1, 5, 1, 50, 0, 0)
	if used, _ := o.scan(5); used != 0 {
		t.Logf("the first scan compares with nothing: %g", used)
	}
	c.step(5, 10)
	c.process(10, 1, 5, 1, 54, 0, 0)      // four core seconds of children that came and went
	c.process(20, 10, c.up-2, 2, 0, 1, 0) // and one that lives
	c.process(30, 1, 5, 1e6, 0, 1, 0)     // old, and not seen before
	if used, on := o.scan(5); math.Abs(used-1.2) > 1e-9 || !slices.Equal(on, []int{0}) {
		t.Errorf("%g cores on %v, want 1.2 on 0", used, on)
	}
	c.step(5, 10)
	c.gone(20)
	c.process(10, 1, 5, 1, 54+3, 0, 0) // it used one second more before it ended
	if used, _ := o.scan(5); math.Abs(used-0.2) > 1e-9 {
		t.Errorf("%g cores, want 0.2", used)
	}
	c.step(5, 10)
	c.gone(10)
	c.gone(30)
	if used, _ := o.scan(5); used != 0 {
		t.Errorf("%g cores of nobody", used)
	}
}

// TestOwnLoad: this user's own processes are nobody else's.
func TestOwnLoad(t *testing.T) {
	c := newCrowd(t)
	o := NewOthers(c.root)
	for i := range 5 {
		c.process(10, 1, 5, float64(10*i), 0, 0, 0)
		c.step(5, 10)
		if got, _ := o.Look(int64(i+1) * 5e9); got != 0 {
			t.Fatalf("%d cores are others'", got)
		}
	}
}

func TestUserName(t *testing.T) {
	c := newCrowd(t)
	c.write("etc/passwd", "root:x:0:0::/root:/bin/sh\nalice:x:1001:1001::/home/alice:/bin/sh\n")
	if a, b := UserName(c.root, 1001), UserName(c.root, 7); a != "alice" || b != "user 7" {
		t.Errorf("%q, %q", a, b)
	}
}
