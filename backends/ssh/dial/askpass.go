package dial

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"launcher/internal/errs"
)

// askVariable names, to the program that ssh starts to ask something, the socket of the
// Dialer that has the terminal.
const askVariable = "LAUNCHER_ASKPASS"

type question struct{ Host, Prompt string }

type reply struct {
	OK     bool
	Answer string
}

// Askpass must be called first thing in main by programs that dial with transport =
// "system" and an Asker: ssh starts the very program again to ask what it has to. It does
// not return then.
func Askpass() {
	socket := os.Getenv(askVariable)
	if socket == "" || len(os.Args) != 2 {
		return
	}
	c, err := net.DialTimeout("unix", socket, 5*time.Second)
	if err != nil {
		os.Exit(1)
	}
	var r reply
	if json.NewEncoder(c).Encode(question{os.Getenv(askVariable + "_HOST"), os.Args[1]}) != nil || json.NewDecoder(c).Decode(&r) != nil || !r.OK {
		os.Exit(1)
	}
	fmt.Println(r.Answer)
	os.Exit(0)
}

// askEnv is the environment of an ssh that has its questions asked by us, one at a time;
// nil where nobody can be asked.
func (d *Dialer) askEnv(s *settings) ([]string, error) {
	if !s.sitting.Terminal {
		return nil, nil
	}
	dir, err := d.runDir()
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "%s: who asks for ssh", s.alias)
	}
	socket := filepath.Join(dir, "ask")
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.asks == nil {
		l, err := net.Listen("unix", socket)
		if err != nil {
			return nil, errs.Wrap(errs.Unavailable, err, "%s: who asks for ssh", s.alias)
		}
		d.asks = l
		go d.serveAsks(l)
	}
	set := map[string]string{"SSH_ASKPASS": self, "SSH_ASKPASS_REQUIRE": "force", askVariable: socket, askVariable + "_HOST": s.alias}
	if os.Getenv("DISPLAY") == "" {
		set["DISPLAY"] = ":0" // older versions ask only where there seems to be one
	}
	return withEnv(set), nil
}

func (d *Dialer) serveAsks(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = c.Close() }()
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			in := bufio.NewReader(c)
			line, err := in.ReadBytes('\n')
			var q question
			if err != nil || json.Unmarshal(line, &q) != nil {
				return
			}
			go func() { // ssh ends the asking when it ends
				_, _ = in.ReadByte()
				cancel()
			}()
			d.asking.Lock()
			defer d.asking.Unlock()
			var r reply
			if ctx.Err() == nil {
				r.Answer, err = d.o.Asker.Ask(ctx, fmt.Sprintf("(%s) %s", q.Host, printable(q.Prompt)), !strings.Contains(q.Prompt, "(yes/no"))
				r.OK = err == nil
			}
			_ = json.NewEncoder(c).Encode(r)
		}()
	}
}
