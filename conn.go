package launcher

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"launcher/internal/errs"
	"launcher/shm"
	"launcher/wire"
	"launcher/wire/sdk"
)

// comeBack is how long an agent may take to be there again after a restart.
const comeBack = 60 * time.Second

// frames reads frames and the descriptors that came with them.
type frames struct {
	conn  *net.UnixConn
	buf   []byte
	r, w  int // what is read and not handled lies between
	files []*os.File
}

// next gives the next frame. Its body is valid until the next call of more.
func (f *frames) next() (typ, flags uint16, body []byte, ok bool, err error) {
	have := f.buf[f.r:f.w]
	if len(have) < wire.FrameHeader {
		return 0, 0, nil, false, nil
	}
	n := int(uint32(have[0]) | uint32(have[1])<<8 | uint32(have[2])<<16 | uint32(have[3])<<24)
	if n < 4 || n > wire.MaxFrame {
		return 0, 0, nil, false, errs.New(errs.Corrupt, "the agent sent a frame of length %d", n)
	}
	if len(have) < n+4 {
		return 0, 0, nil, false, nil
	}
	f.r += n + 4
	return uint16(have[4]) | uint16(have[5])<<8, uint16(have[6]) | uint16(have[7])<<8, have[wire.FrameHeader : n+4], true, nil
}

// more waits for bytes.
func (f *frames) more() error {
	switch have := f.w - f.r; {
	case have == 0:
		f.r, f.w = 0, 0
	case f.r > len(f.buf)/2 || len(f.buf)-f.w < 16<<10:
		b := f.buf
		if have > len(b)/2 {
			b = make([]byte, 2*len(b))
		}
		copy(b, f.buf[f.r:f.w])
		f.buf, f.r, f.w = b, 0, have
	}
	n, files, err := shm.RecvFDs(f.conn, f.buf[f.w:])
	f.w += n
	f.files = append(f.files, files...)
	return err
}

// file takes the descriptor that came with the frame.
func (f *frames) file() (*os.File, error) {
	if len(f.files) == 0 {
		return nil, errs.New(errs.Corrupt, "a frame of the agent without its descriptor")
	}
	file := f.files[0]
	f.files = f.files[1:]
	return file, nil
}

func (f *frames) close() {
	f.conn.Close()
	for _, file := range f.files {
		file.Close()
	}
}

// makeClient is a client that is not connected yet.
func makeClient(h sdk.Hello, dial func(context.Context) (*net.UnixConn, error)) *client {
	c := &client{hello: h, dial: dial, objects: map[objectID]*object{}, shapes: map[string]uint32{}, funcs: map[sdk.FuncID]bool{},
		calls: map[uint32]chan answer{}, ends: map[uint32]uint64{}, lost: make(chan struct{}), stopped: make(chan struct{}), out: outbox{open: -1}}
	if h.Kind == sdk.KindWorker {
		c.worker = &worker{c: c, known: map[sdk.FuncID]*workerFunction{}, come: sync.NewCond(&c.mu), less: sync.NewCond(&c.mu), nested: make(chan struct{}, 1)}
	}
	c.hello.Nonce = make([]byte, 16)
	_, _ = rand.Read(c.hello.Nonce) // it does not fail
	return c
}

// newClient greets the agent at the other end of conn and starts the conversation. dial
// makes the connection again when it breaks.
func newClient(ctx context.Context, conn *net.UnixConn, h sdk.Hello, dial func(context.Context) (*net.UnixConn, error)) (*client, error) {
	c := makeClient(h, dial)
	f, err := c.greet(ctx, conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	c.conn = conn
	c.reading.Go(func() { c.read(f) })
	return c, nil
}

// greet says Hello and takes the answer in.
func (c *client) greet(ctx context.Context, conn *net.UnixConn) (*frames, error) {
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	f := &frames{conn: conn, buf: make([]byte, 256<<10)}
	if _, err := conn.Write(wire.AppendFrame([]byte(sdk.Greeting), sdk.MsgHello, wire.Marshal(c.hello))); err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "greeting the agent")
	}
	for {
		typ, _, body, ok, err := f.next()
		if err == nil && !ok {
			if err = f.more(); errors.Is(err, io.EOF) {
				err = errs.New(errs.Unavailable, "the agent ended the conversation at once")
			}
		}
		switch {
		case err != nil:
			f.close()
			return nil, errs.Wrap(errs.Unknown, err, "greeting the agent")
		case !ok:
		case typ == wire.MsgError:
			return nil, wireFailure(body)
		case typ != sdk.MsgWelcome:
			return nil, errs.New(errs.Corrupt, "the agent answered frame %#04x to the greeting", typ)
		default:
			if err := c.welcome(f, body); err != nil {
				return nil, err
			}
			stop()
			return f, conn.SetDeadline(time.Time{})
		}
	}
}

func wireFailure(body []byte) error {
	var w errs.Wire
	if err := wire.Unmarshal(body, &w); err != nil {
		return errs.Wrap(errs.Corrupt, err, "an error of the agent")
	}
	return w.FromWire()
}

// welcome takes in what the agent said to Hello.
func (c *client) welcome(f *frames, body []byte) error {
	var w sdk.Welcome
	if err := wire.Unmarshal(body, &w); err != nil {
		return errs.Wrap(errs.Corrupt, err, "the agent's welcome")
	}
	if w.Version != c.hello.Version {
		return errs.New(errs.Version, "the agent speaks version %d, this program version %d", w.Version, c.hello.Version).
			Hint("build the program with the launcher module of the cluster's version")
	}
	if err := c.store.attach(f, c.worker != nil); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hello.Client == 0 { // a new agent goes on with what the first one said
		c.welcomed, c.hello.Client = w, w.Client
	}
	return nil
}

// read handles what the agent sends, and connects again when it is restarted.
func (c *client) read(f *frames) {
	for {
		err := c.readFrames(f)
		f.close()
		c.mu.Lock()
		c.conn = nil
		closing := c.closing
		c.mu.Unlock()
		if closing || !errs.Is(err, errs.Unavailable) {
			c.fail(err)
			return
		}
		if f, err = c.reconnect(err); err != nil {
			c.fail(err)
			return
		}
	}
}

// readFrames handles frames until the connection ends.
func (c *client) readFrames(f *frames) error {
	for {
		c.mu.Lock()
		var err error
		for err == nil {
			typ, flags, body, ok, ferr := f.next()
			if err = ferr; err != nil || !ok {
				break
			}
			err = c.handle(f, typ, flags, body)
		}
		logs, errors := c.logs, c.errors
		c.logs, c.errors = nil, nil
		c.mu.Unlock()
		_, _ = os.Stdout.Write(logs)
		_, _ = os.Stderr.Write(errors)
		if err != nil {
			return err
		}
		if err := f.more(); err != nil {
			return errs.Wrap(errs.Unavailable, err, "the agent is gone")
		}
	}
}

// reconnect finds the agent again and repeats what it may not have.
func (c *client) reconnect(cause error) (*frames, error) {
	ctx, cancel := context.WithTimeout(context.Background(), comeBack)
	defer cancel()
	for {
		conn, err := c.dial(ctx)
		if err == nil {
			f, gerr := c.greet(ctx, conn)
			if gerr == nil {
				c.resume(conn)
				return f, nil
			}
			conn.Close()
			if err = gerr; errs.Is(err, errs.Fenced) || errs.Is(err, errs.Version) {
				return nil, err
			}
		}
		select {
		case <-ctx.Done():
			return nil, errs.Wrap(errs.Lost, cause, "the node's agent is gone, and not back within %s", comeBack)
		case <-c.stopped:
			return nil, cause
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// resume continues the conversation on a new connection.
func (c *client) resume(conn *net.UnixConn) {
	c.mu.Lock()
	c.worker.resume()
	c.out.voidRequests()
	c.store.askAgain()
	c.out.written = c.out.proven
	c.out.asked = c.out.proven
	c.conn = conn
	for _, o := range c.objects {
		if o.asked != askedNothing && o.state.Load() <= stateReady {
			flags := uint32(0)
			if o.asked == askedValue {
				flags = sdk.GetValue
			}
			c.askFor(o, o.asked, flags, false)
			c.out.close()
		}
	}
	c.mu.Unlock()
	c.flush()
}

// fail ends everything that waits: the agent is not coming back.
func (c *client) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone = err
	for _, o := range c.objects {
		if o.state.Load() <= stateReady {
			o.err = err
			o.settle(stateFailed)
		}
	}
	for n, ch := range c.calls {
		delete(c.calls, n)
		ch <- answer{err: err}
	}
	if c.worker != nil {
		c.worker.come.Signal()
	}
	close(c.lost)
}

// proves says that the agent has handled everything before a position; mu must be held.
func (c *client) proves(at uint64) {
	if at > c.out.proven {
		c.out.proven = at
		if c.moved != nil {
			close(c.moved)
			c.moved = nil
		}
	}
}
