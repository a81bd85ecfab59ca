package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"launcher/internal/errs"
	"launcher/wire"
)

// The commands of this file are for programs in a run: they speak HTTP with the node's
// agent over $LAUNCHER_SOCKET, as any program may.

// insideBound is how long the agent may take to answer; a restarting one is waited for.
const insideBound = 30 * time.Second

const leavePath = "/v1/should-leave"

// insideCall asks the agent one question and decodes the answer into out.
func insideCall(ctx context.Context, method, path string, body, out any) error {
	sock, proc := os.Getenv("LAUNCHER_SOCKET"), os.Getenv("LAUNCHER_PROC")
	if sock == "" || proc == "" && path != leavePath { // tasks and actors of programs are no processes of a run
		return errs.New(errs.Invalid, "this is not inside a run: LAUNCHER_SOCKET and LAUNCHER_PROC are not set").
			Hint("this command is for programs that launcher started: launcher run -- sh -c 'launcher report loss=0.3'")
	}
	ctx, cancel := context.WithTimeout(ctx, insideBound)
	defer cancel()
	var payload []byte
	if body != nil {
		var err error
		if payload, err = json.Marshal(body); err != nil {
			return errs.Wrap(errs.Invalid, err, "cannot send this")
		}
	}
	hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", sock)
	}}}
	for {
		req, err := http.NewRequestWithContext(ctx, method, "http://launcher"+path, bytes.NewReader(payload))
		if err != nil {
			return errs.Wrap(errs.Internal, err, "request")
		}
		req.Header.Set("X-Launcher-Proc", proc)
		req.Header.Set("Content-Type", "application/json")
		resp, err := hc.Do(req)
		if err == nil {
			return insideAnswer(resp, out)
		}
		// The agent may be on its way back after a restart: the socket stays, held by its
		// supervisor, but a connection may break.
		select {
		case <-ctx.Done():
			return errs.Wrap(errs.Unavailable, err, "the agent at $LAUNCHER_SOCKET does not answer")
		case <-time.After(100 * time.Millisecond):
		}
		if _, err := os.Stat(sock); err != nil {
			return errs.Wrap(errs.NotFound, err, "the agent of this run is gone")
		}
	}
}

func insideAnswer(resp *http.Response, out any) error {
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return errs.Wrap(errs.Unavailable, err, "the agent's answer broke off")
	}
	if resp.StatusCode/100 != 2 {
		return insideError(resp.StatusCode, b)
	}
	if err := json.Unmarshal(b, out); err != nil {
		return errs.Wrap(errs.Corrupt, err, "the agent's answer")
	}
	return nil
}

// insideError reads an error of the agent: {"kind","msg","hints"}, plain or under "error".
func insideError(status int, b []byte) error {
	type body struct {
		Kind  any      `json:"kind"`
		Msg   string   `json:"msg"`
		Hints []string `json:"hints"`
	}
	var w struct {
		body
		Error *body `json:"error"`
	}
	if json.Unmarshal(b, &w) == nil {
		if w.Error != nil {
			w.body = *w.Error
		}
		if w.Msg != "" {
			return &errs.Error{Kind: errs.Invalid, Msg: w.Msg, Hints: w.Hints}
		}
	}
	return errs.New(errs.Unavailable, "the agent answered %d: %s", status, strings.TrimSpace(string(b)))
}

// advice is what the agent says to a report.
type advice struct {
	Leave    string `json:"leave"`
	Deadline int64  `json:"deadline"`
}

func (a *app) printAdvice(ad advice) {
	if a.json {
		a.printJSON(doc{"leave": ad.Leave != "", "reason": ad.Leave, "deadline": ad.Deadline})
		return
	}
	if ad.Leave == "" {
		fmt.Fprintln(a.out, "go")
	} else {
		fmt.Fprintln(a.out, "leave")
	}
}

func (a *app) cmdReport() *cobra.Command {
	var checkpoint string
	c := &cobra.Command{
		Use:   "report KEY=VALUE... [--checkpoint DIR]",
		Short: "say how the program goes; prints go or leave",
		Long: `Report metrics, and with --checkpoint a directory that holds everything needed to go on.
"step=N" is the step they belong to. Prints "go", or "leave" when the program should save
and end with exit code 75: pruned, preempted, out of time.`,
		Example: `  launcher report loss=0.31 step=5 --checkpoint ckpt/`,
		Args:    cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			body := struct {
				Metrics    map[string]wire.Number `json:"metrics"`
				Step       *int64                 `json:"step,omitempty"`
				Checkpoint string                 `json:"checkpoint,omitempty"`
			}{Metrics: map[string]wire.Number{}}
			for _, kv := range args {
				k, v, ok := strings.Cut(kv, "=")
				if !ok || k == "" {
					return errs.New(errs.Invalid, "report %q: not KEY=VALUE", kv).Hint("for example: launcher report loss=0.31 step=5")
				}
				if k == "step" {
					n, err := strconv.ParseInt(v, 10, 64)
					if err != nil || n < 0 {
						return errs.New(errs.Invalid, "report step=%s: not a whole number of 0 or more", v)
					}
					body.Step = &n
					continue
				}
				f, err := strconv.ParseFloat(v, 64)
				if err != nil {
					return errs.New(errs.Invalid, "report %s=%s: not a number", k, v)
				}
				body.Metrics[k] = wire.Number(f)
			}
			if len(args) == 0 && checkpoint == "" {
				return errs.New(errs.Invalid, "launcher report: nothing to report").Hint("usage: launcher %s", c.Use)
			}
			if checkpoint != "" {
				abs, err := filepath.Abs(checkpoint)
				if err != nil {
					return errs.Wrap(errs.Invalid, err, "--checkpoint")
				}
				if st, err := os.Stat(abs); err != nil || !st.IsDir() {
					return errs.New(errs.NotFound, "--checkpoint %s is not a directory", checkpoint)
				}
				body.Checkpoint = abs
			}
			var ad advice
			if err := insideCall(c.Context(), http.MethodPost, "/v1/report", body, &ad); err != nil {
				return err
			}
			a.printAdvice(ad)
			return nil
		},
	}
	c.Flags().StringVar(&checkpoint, "checkpoint", "", "directory that holds the checkpoint of this step")
	return c
}

func (a *app) cmdShouldLeave() *cobra.Command {
	return &cobra.Command{
		Use:   "should-leave",
		Short: "exit 0 when the program should save and leave, 1 when it should go on",
		Args:  argCount(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			var ad advice
			if err := insideCall(c.Context(), http.MethodGet, leavePath, nil, &ad); err != nil {
				return err
			}
			a.printAdvice(ad)
			if ad.Leave == "" {
				return &exitError{code: 1, side: sideLauncher}
			}
			return nil
		},
	}
}

func (a *app) cmdParam() *cobra.Command {
	return &cobra.Command{
		Use:   "param [KEY]",
		Short: "a parameter of this trial, or all of them as JSON",
		Args:  argCount(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			var params map[string]json.RawMessage
			if err := insideCall(c.Context(), http.MethodGet, "/v1/params", nil, &params); err != nil {
				return err
			}
			if len(args) == 0 {
				if params == nil {
					params = map[string]json.RawMessage{}
				}
				if a.json {
					a.printJSON(doc{"params": params})
					return nil
				}
				b, err := json.Marshal(params)
				if err != nil {
					return errs.Wrap(errs.Corrupt, err, "the parameters")
				}
				fmt.Fprintf(a.out, "%s\n", b)
				return nil
			}
			v, ok := lookupParam(params, args[0])
			if !ok {
				e := errs.New(errs.NotFound, "there is no parameter %q", args[0])
				if len(params) == 0 {
					return e.Hint("only the trials of a sweep have parameters")
				}
				return e.Hint("`launcher param` prints them all")
			}
			if a.json {
				a.printJSON(doc{"key": args[0], "value": v})
				return nil
			}
			var s string
			if json.Unmarshal(v, &s) != nil {
				s = string(v)
			}
			fmt.Fprintln(a.out, s)
			return nil
		},
	}
}

// lookupParam finds a parameter by its name, a nested one by its dotted name (opt.lr).
// A name that stands there as it is wins over a nested one.
func lookupParam(params map[string]json.RawMessage, name string) (json.RawMessage, bool) {
	if v, ok := params[name]; ok {
		return v, true
	}
	for i, c := range name {
		if c != '.' {
			continue
		}
		var inner map[string]json.RawMessage
		if json.Unmarshal(params[name[:i]], &inner) != nil {
			continue
		}
		if v, ok := lookupParam(inner, name[i+1:]); ok {
			return v, true
		}
	}
	return nil, false
}

func (a *app) cmdCheckpoint() *cobra.Command {
	return &cobra.Command{
		Use:   "checkpoint",
		Short: "the directory of the checkpoint to go on from; exit 1 when there is none",
		Args:  argCount(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			var ck struct {
				Path string `json:"path"`
				Step int64  `json:"step"`
			}
			if err := insideCall(c.Context(), http.MethodGet, "/v1/checkpoint", nil, &ck); err != nil {
				return err
			}
			if a.json {
				a.printJSON(doc{"path": ck.Path, "step": ck.Step})
			} else if ck.Path != "" {
				fmt.Fprintln(a.out, ck.Path)
			}
			if ck.Path == "" {
				return &exitError{code: 1, side: sideLauncher}
			}
			return nil
		},
	}
}
