package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"launcher/shm"
	"launcher/wire"
)

// The frames of docs/tasks.md section 3, written out once more: what the agent speaks must
// be what the page says.
const (
	fHello, fFunc, fShape, fSubmit, fPut, fGet, fRelease = 0x410, 0x411, 0x412, 0x413, 0x414, 0x415, 0x417
	fResult, fCancel, fCall                              = 0x419, 0x41d, 0x41f
	fWelcome, fObject, fExec, fFuncOut, fAnswer, fLog    = 0x440, 0x441, 0x442, 0x443, 0x446, 0x447
	fExit                                                = 0x44b
)

type rawFrame struct {
	typ, flags uint16
	body       []byte
}

// rawSDK is a driver or worker that writes frames by hand.
type rawSDK struct {
	c      *net.UnixConn
	node   uint32
	client uint32
	nonce  []byte
	job    string
	n      uint64 // of ids
	buf    []byte
	in     []byte
	files  []*os.File
	sent   []byte
}

type helloMsg struct {
	Version, Kind       int
	Language            string
	PID                 int
	Proc, Job, Name     string
	Client              uint32
	Nonce               []byte
	Token, Program, Dir string
	Path                []string
}

type welcomeMsg struct {
	Version, Number, Client uint32
	Node, Cluster, Job      string
	InlineMax               int64
	Nonce                   []byte
	CPUs                    int64
}

func dialSDK(path string) (*rawSDK, error) {
	c, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	return rawOf(c.(*net.UnixConn)), nil
}

func rawOf(c *net.UnixConn) *rawSDK {
	_ = c.SetDeadline(time.Now().Add(3 * bound))
	return &rawSDK{c: c, nonce: bytes.Repeat([]byte{9}, 16)}
}

func (r *rawSDK) hello(h helloMsg) error {
	h.Version, h.PID, h.Nonce, h.Client = 1, os.Getpid(), r.nonce, r.client
	if h.Language == "" {
		h.Language = "go"
	}
	if h.Program == "" {
		h.Program, _ = os.Executable()
	}
	if _, err := r.c.Write(wire.AppendFrame([]byte("LSDK"), fHello, wire.Marshal(h))); err != nil {
		return err
	}
	f, err := r.next()
	if err != nil {
		return err
	}
	if f.typ != fWelcome {
		return fmt.Errorf("instead of Welcome came %#x %q", f.typ, f.body)
	}
	var w welcomeMsg
	if err := wire.Unmarshal(f.body, &w); err != nil {
		return err
	}
	r.node, r.client, r.job, r.nonce = w.Number, w.Client, w.Job, w.Nonce
	return nil
}

// next reads one frame.
func (r *rawSDK) next() (f rawFrame, err error) {
	for {
		if len(r.in) >= 8 {
			if n := int(binary.LittleEndian.Uint32(r.in)) + 4; len(r.in) >= n {
				f = rawFrame{binary.LittleEndian.Uint16(r.in[4:]), binary.LittleEndian.Uint16(r.in[6:]), bytes.Clone(r.in[8:n])}
				r.in = r.in[n:]
				return f, nil
			}
		}
		b := make([]byte, 64<<10)
		n, files, err := shm.RecvFDs(r.c, b)
		if err != nil {
			return f, err
		}
		r.in, r.files = append(r.in, b[:n]...), append(r.files, files...)
	}
}

// until reads frames until one of a type.
func (r *rawSDK) until(typ uint16) (rawFrame, error) {
	for {
		f, err := r.next()
		if err != nil || f.typ == typ {
			return f, err
		}
		if f.typ == wire.MsgError {
			return f, fmt.Errorf("the agent says %q", f.body)
		}
	}
}

func (r *rawSDK) add(typ uint16, parts ...any) {
	var b []byte
	for _, p := range parts {
		switch p := p.(type) {
		case uint32:
			b = binary.LittleEndian.AppendUint32(b, p)
		case uint64:
			b = binary.LittleEndian.AppendUint64(b, p)
		case [16]byte:
			b = append(b, p[:]...)
		case []byte:
			b = append(b, p...)
		case string:
			b = append(b, p...)
		default:
			panic(p)
		}
	}
	r.buf = wire.AppendFrame(r.buf, typ, b)
}

func (r *rawSDK) flush() error {
	b := r.buf
	r.buf = nil
	r.sent = append(r.sent, b...)
	_, err := r.c.Write(b)
	return err
}

func (r *rawSDK) id(index uint64) (id [16]byte) {
	binary.LittleEndian.PutUint32(id[:], r.node)
	binary.LittleEndian.PutUint32(id[4:], r.client)
	binary.LittleEndian.PutUint64(id[8:], r.n<<20|index)
	return id
}

func ret(task [16]byte, i uint64) [16]byte {
	binary.LittleEndian.PutUint64(task[8:], binary.LittleEndian.Uint64(task[8:])&^0xfffff|(i+1))
	return task
}

var theFunc = [16]byte{1, 2, 3}

// begin tells of the function and of a shape.
func (r *rawSDK) begin(shape map[string]any) {
	r.add(fFunc, theFunc, uint32(4), "test", "code")
	r.add(fShape, uint32(1), wire.Marshal(shape))
}

// submit buffers a task whose payload is a word for the test worker.
func (r *rawSDK) submit(word string, deps ...[16]byte) (task [16]byte) {
	r.n++
	task = r.id(0)
	parts := []any{task, theFunc, uint32(1), uint32(1), uint32(0), uint32(len(deps)), uint32(0)}
	for _, d := range deps {
		parts = append(parts, d)
	}
	r.add(fSubmit, append(parts, word)...)
	return task
}

func (r *rawSDK) get(flags uint32, ids ...[16]byte) {
	parts := []any{flags, uint32(0)}
	for _, id := range ids {
		parts = append(parts, id)
	}
	r.add(fGet, parts...)
}

// inline is an encoded inline value of bytes.
func inline(s string) []byte {
	b := []byte{1, 2, 0, 0, 0, 0, 0, 0}
	return append(binary.LittleEndian.AppendUint64(b, uint64(len(s))), s...)
}

// object reads a value: its text, or its error.
func object(f rawFrame) (id [16]byte, text string, err error) {
	copy(id[:], f.body)
	v := f.body[16:]
	kind, refs, size := v[0], binary.LittleEndian.Uint32(v[4:]), binary.LittleEndian.Uint64(v[8:])
	data := v[16+16*refs:]
	switch kind {
	case 1:
		return id, string(data), nil
	case 3:
		var e []any
		if err := wire.Unmarshal(data, &e); err != nil {
			return id, "", err
		}
		return id, "", fmt.Errorf("%v: %v", e[0], e[1])
	}
	return id, fmt.Sprintf("kind %d size %d", kind, size), nil
}

// answers reads Objects until all ids are there.
func (r *rawSDK) answers(ids ...[16]byte) (map[[16]byte]string, error) {
	out := map[[16]byte]string{}
	for len(out) < len(ids) {
		f, err := r.until(fObject)
		if err != nil {
			return out, err
		}
		id, text, err := object(f)
		if err != nil {
			text = "error " + err.Error()
		}
		if slices.Contains(ids, id) {
			out[id] = text
		}
	}
	return out, nil
}

// playWorker is a worker: it does what the payloads of its tasks say.
func playWorker() int {
	f := os.NewFile(3, "agent")
	c, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return 1
	}
	r := rawOf(c.(*net.UnixConn))
	last := []byte(nil)
	for {
		err := r.hello(helloMsg{Kind: 2, Token: os.Getenv("LAUNCHER_WORKER")})
		if err == nil {
			if last != nil {
				r.buf = append([]byte(nil), last...)
				err = r.flush()
			}
			for err == nil {
				var again bool
				if again, err = r.work(&last); !again && err == nil {
					return 0
				}
			}
		}
		r.c.Close()
		// sleep: another process makes the socket; bounded
		for end := time.Now().Add(bound); ; time.Sleep(10 * time.Millisecond) {
			n, err := dialSDK(os.Getenv("LAUNCHER_SOCKET"))
			if err == nil {
				n.client, n.nonce, n.node = r.client, r.nonce, r.node
				r = n
				break
			}
			if time.Now().After(end) {
				return 1
			}
		}
	}
}

// work does one task.
func (r *rawSDK) work(last *[]byte) (goOn bool, err error) {
	f, err := r.next()
	if err != nil {
		return true, err
	}
	switch f.typ {
	case fExit:
		return false, nil
	case fExec:
	case wire.MsgError:
		return false, errors.New(string(f.body))
	default:
		return true, nil
	}
	le := binary.LittleEndian
	attempt, deps, info := le.Uint32(f.body[32:]), le.Uint32(f.body[48:]), le.Uint32(f.body[52:])
	rest := f.body[56+info:]
	var given []string
	for range deps {
		n := 32 + 16*le.Uint32(rest[20:]) + uint32(le.Uint64(rest[24:]))
		_, text, err := object(rawFrame{body: rest[:n]})
		if err != nil {
			return true, err
		}
		given, rest = append(given, text), rest[n:]
	}
	status, value := uint32(0), inline("")
	word, arg, _ := strings.Cut(string(rest), " ")
	switch word {
	case "say":
		value = inline(arg)
	case "join":
		value = inline(strings.Join(given, "+"))
	case "pid":
		value = inline(fmt.Sprint(os.Getpid()))
	case "env":
		value = inline(os.Getenv(arg))
	case "print":
		fmt.Println(arg)
	case "fail":
		status = 1
		e := wire.Marshal([]any{"task", arg, "", nil, "test", "", os.Getpid(), []string{}})
		value = append(le.AppendUint64([]byte{3, 0, 0, 0, 0, 0, 0, 0}, uint64(len(e))), e...)
	case "die":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "once": // dies the first time
		if attempt == 1 {
			os.Exit(3)
		}
		value = inline(fmt.Sprint("attempt ", attempt))
	case "wait": // for a file to be there
		for {
			if _, err := os.Stat(arg); err == nil {
				break
			}
			// sleep: a file is the only thing that the test and this worker share
			time.Sleep(2 * time.Millisecond)
		}
	case "garbage":
		_, _ = r.c.Write([]byte("\xff\xff\xff\xffgarbage"))
	case "nested": // a task of this task's
		r.begin(map[string]any{})
		task := r.submit("say inner")
		r.get(3, ret(task, 0))
		if err := r.flush(); err != nil {
			return true, err
		}
		got, err := r.answers(ret(task, 0))
		if err != nil {
			return true, err
		}
		value = inline("outer " + got[ret(task, 0)])
	}
	var id [16]byte
	copy(id[:], f.body)
	now := uint64(time.Now().UnixNano())
	r.add(fResult, id, attempt, status, now, now, uint32(1), value)
	*last = r.buf
	return true, r.flush()
}
