package agent

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"launcher/internal/clock"
	"launcher/internal/logx"
	"launcher/wire"
)

// keeper is a supervisor that keeps descriptors, in this process.
type keeper struct {
	mu    sync.Mutex
	fds   map[string]*os.File
	alive func() // called before Alive returns
}

func (k *keeper) StoreFD(_ context.Context, name string, f *os.File) error {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if old := k.fds[name]; old != nil {
		old.Close()
	}
	k.fds[name] = os.NewFile(uintptr(fd), name)
	return nil
}

func (k *keeper) DropFD(names ...string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, n := range names {
		if f := k.fds[n]; f != nil {
			f.Close()
			delete(k.fds, n)
		}
	}
	return nil
}

func (k *keeper) Alive(context.Context) error {
	if k.alive != nil {
		k.alive()
	}
	return nil
}

func newKeeper(t *testing.T) *keeper {
	k := &keeper{fds: map[string]*os.File{}}
	t.Cleanup(func() {
		for _, f := range k.fds {
			f.Close()
		}
	})
	return k
}

// TestClaims: two clusters on a machine never have the same GPU, whatever becomes of their
// agents.
func TestClaims(t *testing.T) {
	uuid := "GPU-test-" + t.Name() + time.Now().Format(time.RFC3339Nano)
	clk := clock.NewFake(1)
	k := newKeeper(t)
	a := newClaims(logx.Discard(), k, clk, false, nil)
	b := newClaims(logx.Discard(), newKeeper(t), clk, false, nil)
	defer b.close()
	if has(a, uuid) || has(b, uuid) || !a.Claim(uuid) || !a.Claim(uuid) {
		t.Fatal("a free GPU cannot be had")
	}
	if b.Claim(uuid) || !has(b, uuid) || has(a, uuid) || !b.sawMiss() || b.sawMiss() {
		t.Fatal("two have the same GPU")
	}
	a.tidy(t.Context())
	if k.fds[claimPrefix+uuid] == nil {
		t.Fatal("the supervisor does not have what is used")
	}

	// The agent is killed: the supervisor still has the lock, and the next agent takes it up.
	a.close()
	if b.Claim(uuid) {
		t.Fatal("the lock went with the agent")
	}
	again := newClaims(logx.Discard(), k, clk, false, map[string]*os.File{claimPrefix + uuid: dup(t, k.fds[claimPrefix+uuid]), "other": nil})
	if has(again, uuid) || !again.Claim(uuid) {
		t.Fatal("the next agent does not have it")
	}

	// Not used any more: it is kept for a moment, and taken up again within it.
	again.Drop(uuid)
	if wait := again.tidy(t.Context()); wait > claimLinger || wait == 0 || b.Claim(uuid) {
		t.Fatalf("let go at once; wait %v", wait)
	}
	clk.Advance(claimLinger)
	k.alive = func() { again.Claim(uuid) } // just while the supervisor lets go
	again.tidy(t.Context())
	k.alive = nil
	if b.Claim(uuid) {
		t.Fatal("let go although it is used again")
	}
	again.tidy(t.Context())
	if k.fds[claimPrefix+uuid] == nil {
		t.Fatal("the supervisor does not have it again")
	}
	again.Drop(uuid)
	clk.Advance(claimLinger)
	again.tidy(t.Context())
	if len(k.fds) != 0 || has(b, uuid) || !b.Claim(uuid) {
		t.Fatal("it is not free when nothing uses it")
	}
	if again.Claim(uuid) || !again.sawMiss() {
		t.Fatal("two have the same GPU")
	}
	yes := newClaims(logx.Discard(), newKeeper(t), clk, true, nil)
	if has(yes, uuid) || !yes.Claim(uuid) || yes.sawMiss() {
		t.Error(`share = "ignore" minds others`)
	}
	yes.Drop(uuid)
	yes.close()
}

func has(c *claims, uuid string) bool {
	_, yes := c.others(uuid)
	return yes
}

// TestClaimTells: who finds a GPU locked hears whose it is, however many ask, and nobody
// waits.
func TestClaimTells(t *testing.T) {
	uuid := "GPU-test-" + t.Name() + time.Now().Format(time.RFC3339Nano)
	clk := clock.NewFake(1)
	a := newClaims(logx.Discard(), newKeeper(t), clk, false, nil)
	defer a.close()
	b := newClaims(logx.Discard(), newKeeper(t), clk, false, nil)
	defer b.close()
	if !a.Claim(uuid) {
		t.Fatal("a free GPU cannot be had")
	}
	want := fmt.Sprintf("another cluster of yours (process %d)", os.Getpid())
	for range 3 {
		for range claimBacklog {
			if who, yes := b.others(uuid); !yes || who != want {
				t.Fatalf("%v, %q, want %q", yes, who, want)
			}
		}
		for range claimBacklog { // nobody lets them in
			if _, yes := b.others(uuid); !yes {
				t.Fatal("not locked any more")
			}
		}
		a.tidy(t.Context())
	}
}

func dup(t *testing.T, f *os.File) *os.File {
	t.Helper()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	must(t, err)
	return os.NewFile(uintptr(fd), f.Name())
}

// TestDeclareGPUs: a pool may say that there are more than are found; nodes that divide a
// machine say it of different ones.
func TestDeclareGPUs(t *testing.T) {
	for _, g := range declareGPUs(nil, wire.NodeConfig{GPUs: []int{2, 3}}, 2) {
		if g.Name != "granted" || g.Index < 2 {
			t.Errorf("granted 2 and 3: %+v", g)
		}
	}
	if got := declareGPUs([]wire.GPU{{UUID: "GPU-x"}}, wire.NodeConfig{GPUs: []int{0}}, 0); len(got) != 1 || got[0].UUID != "GPU-x" {
		t.Errorf("granted, and shown by the driver: %+v", got)
	}
	one := declareGPUs([]wire.GPU{{UUID: "GPU-x"}}, wire.NodeConfig{}, 3)
	if len(one) != 3 || one[0].Declared || !one[2].Declared || one[2].Index != 2 {
		t.Errorf("%+v", one)
	}
	var all []string
	for slot := range 2 {
		for _, g := range declareGPUs(nil, wire.NodeConfig{Slot: slot, Slots: 2}, 2) {
			all = append(all, g.UUID)
			if int(g.Index)%2 != slot {
				t.Errorf("slot %d has number %d", slot, g.Index)
			}
		}
	}
	slices.Sort(all)
	if len(slices.Compact(all)) != 4 {
		t.Errorf("two nodes of a machine share GPUs: %v", all)
	}
}
