package store

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"launcher/shm"
	"launcher/wire"
)

// TestMain makes this binary play the agent of TestKilledAtAnyMoment.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "store-agent" {
		life(os.Args[2], strings.Fields(os.Getenv("KEPT_NAMES")))
	}
	os.Exit(m.Run())
}

// say sends one packet to the keeper and waits for its answer.
func say(c *net.UnixConn, text string, files ...*os.File) error {
	b := append([]byte{byte(len(text))}, text...)
	if err := shm.SendFDs(c, b, files...); err != nil {
		return err
	}
	_, err := io.ReadFull(c, b[:1])
	return err
}

// life is one life of an agent: it checks what it finds, then puts, frees and restores
// until it is killed. Programs are in the same process and die with it, all at once.
func life(dir string, names []string) {
	fail := func(err error) {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(3)
	}
	conn, err := net.FileConn(os.NewFile(3, "keeper"))
	if err != nil {
		fail(err)
	}
	c := conn.(*net.UnixConn)
	kept := map[string]*os.File{}
	for i, n := range names {
		kept[strings.TrimSuffix(n, ".")] = os.NewFile(uintptr(4+i), n)
	}
	n := &node{dir: dir, programs: map[uint32]*program{}, changed: make(chan struct{})}
	calls := make(chan struct{}, 1)
	ask := func(text string, files ...*os.File) error {
		calls <- struct{}{}
		defer func() { <-calls }()
		return say(c, text, files...)
	}
	n.s, err = Open(Config{Dir: dir, Limit: 24 * mib, Warm: 20 * time.Millisecond, Notify: n.notify,
		Keep: func(name string, f *os.File) error { return ask("+"+name, f) },
		Drop: func(name string) { _ = ask("-" + name) }}, kept)
	if err != nil {
		fail(err)
	}
	// Every object is whole, and the sums are those of the objects.
	var live, files int64
	var ids []wire.ObjectID
	seen := map[wire.ObjectID]bool{}
	for _, i := range n.s.List() {
		if seen[i.ID] || i.ID.IsZero() {
			fail(fmt.Errorf("object %s is there twice", i.ID))
		}
		seen[i.ID] = true
		ids = append(ids, i.ID)
		if i.State == "spilled" {
			files += i.Size
			continue
		}
		b, _, release, err := n.s.Read(i.ID)
		if err == nil {
			err = check(b, i.ID)
			release()
		}
		if err != nil {
			fail(err)
		}
		live += i.Size
	}
	n.s.mu.Lock()
	for _, o := range n.s.dying {
		live += o.size
	}
	if n.s.live != live || n.s.spilled != files || n.s.used < live || n.s.used > n.s.cfg.Limit {
		fail(fmt.Errorf("%d bytes in memory and %d in files, the store counts %d and %d, %d used", live, files, n.s.live, n.s.spilled, n.s.used))
	}
	n.s.mu.Unlock()
	for _, old := range n.s.Clients() {
		n.s.Detach(old)
	}
	for _, id := range ids {
		if at, _, _ := n.s.Where(id); at == InFile {
			n.s.Restore(id) // Lost would be told
		}
	}
	found := fmt.Sprintf("!%d %d", len(seen), files>>20)
	number := uint32(time.Now().UnixNano()) | 1
	for k := range uint32(3) {
		n.t = &testing.B{}
		p := n.program(number+2*k, "j")
		go func() {
			for {
				id, err := p.put(int64(64<<10 + rand.IntN(mib)))
				if err != nil {
					fail(err)
				}
				n.mu.Lock()
				ids = append(ids, id)
				var free []wire.ObjectID
				for len(ids) > 60 {
					j := rand.IntN(len(ids))
					free = append(free, ids[j])
					ids[j] = ids[len(ids)-1]
					ids = ids[:len(ids)-1]
				}
				for _, e := range n.events {
					if e, ok := e.(Lost); ok {
						fail(e.Err)
					}
				}
				n.events = nil
				n.mu.Unlock()
				n.s.Free(free)
				if rand.IntN(3) == 0 {
					n.s.Restore(id)
				}
			}
		}()
	}
	_ = ask(found) // it lives
	select {}
}

func TestKilledAtAnyMoment(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir() + "/spill"
	kept := map[string]*os.File{}
	taken, spilled := 0, 0
	for round := range 25 {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		theirs, mine := os.NewFile(uintptr(fds[0]), "agent"), os.NewFile(uintptr(fds[1]), "keeper")
		conn, err := net.FileConn(mine)
		mine.Close()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(exe, "store-agent", dir)
		cmd.ExtraFiles = []*os.File{theirs}
		var names []string
		for n, f := range kept {
			names = append(names, n+".") // a job may be ""
			cmd.ExtraFiles = append(cmd.ExtraFiles, f)
		}
		cmd.Env = append(os.Environ(), "KEPT_NAMES="+strings.Join(names, " "))
		var errors strings.Builder
		cmd.Stderr = &errors
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		theirs.Close()
		kill := time.AfterFunc(bound, func() { _ = cmd.Process.Kill() })
		lived := false
		c := conn.(*net.UnixConn)
		for {
			b := make([]byte, 1)
			_, files, err := shm.RecvFDs(c, b)
			if err != nil {
				break
			}
			text := make([]byte, b[0])
			if _, err := io.ReadFull(c, text); err != nil {
				break
			}
			name := string(text[1:])
			switch text[0] {
			case '+':
				if len(files) != 1 {
					t.Fatalf("%s came with %d descriptors", name, len(files))
				}
				kept[name] = files[0]
			case '-':
				if f := kept[name]; f != nil {
					f.Close()
					delete(kept, name)
				}
			default:
				lived = true
				var objects, files int
				if _, err := fmt.Sscan(name, &objects, &files); err != nil {
					t.Fatal(err)
				}
				taken, spilled = taken+objects, spilled+files
				kill.Reset(time.Duration(rand.IntN(150)) * time.Millisecond)
			}
			if _, err := c.Write([]byte{0}); err != nil {
				break
			}
		}
		err = cmd.Wait()
		kill.Stop()
		c.Close()
		status, _ := cmd.ProcessState.Sys().(interface{ Signal() unix.Signal })
		if !lived || status == nil || errors.Len() > 0 {
			t.Fatalf("life %d: %v, %s", round, err, errors.String())
		}
	}
	for _, f := range kept {
		f.Close()
	}
	if taken < 200 || spilled == 0 {
		t.Errorf("%d objects were taken up in all, %d MiB of them on disk: this tests nothing", taken, spilled)
	}
	t.Logf("%d objects were taken up in all, %d MiB of them on disk", taken, spilled)
}

// The header of a spilled object is read from a disk that others may have written.
func FuzzSpillHead(f *testing.F) {
	o := &object{id: wire.NewObjectID(1, 2, 3, 4), size: 100, form: 2, maker: 2, job: "job"}
	f.Add(spillHead(o, 77))
	f.Add(spillHead(&object{size: 1}, 0)[:40])
	huge := spillHead(o, 1)
	binary.LittleEndian.PutUint32(huge[4:], 1<<31)
	f.Add(huge)
	f.Fuzz(func(t *testing.T, b []byte) {
		got, sum, err := readHead(strings.NewReader(string(b)))
		if err != nil {
			return
		}
		if again := spillHead(&got, sum); len(again) > len(b) || string(again[:44]) != string(b[:44]) || got.size <= 0 {
			t.Errorf("%x is read as %+v", b, got)
		}
	})
}
