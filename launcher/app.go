package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"launcher/configs"
	"launcher/internal/errs"
)

// Exit codes of the command itself; a foreground job passes its own code on.
const (
	exitOK        = 0
	exitTimeout   = 124 // a bounded wait or a time limit ran out
	exitLauncher  = 125 // launcher failed, not the command
	exitNotFound  = 127 // and 126: the command could not be executed
	exitCancelled = 130 // Ctrl-C or `launcher cancel`
)

// Whose exit code it is, for --json.
const (
	sideCommand  = "command"
	sideLauncher = "launcher"
)

// app is one invocation of the command: its streams and the flags all commands share.
type app struct {
	args    []string // the whole command line
	in      io.Reader
	out     io.Writer // results
	err     io.Writer // progress, notes, errors
	json    bool      // --json
	cluster string    // -c
	screen  *screen   // serialises out and err when a progress line is shown
	tty     bool      // err is a terminal: progress lines may be redrawn
	outTTY  bool
	inTTY   bool
	told    bool // a --json stream has told the error already
}

func newApp(in io.Reader, out, errw io.Writer) *app {
	a := &app{in: in, out: out, err: errw}
	a.tty, a.outTTY, a.inTTY = isTerminal(errw), isTerminal(out), isTerminal(in)
	a.screen = newScreen(out, errw, a.tty)
	if f, ok := errw.(*os.File); ok && a.tty {
		a.screen.width = func() int {
			w, _, err := term.GetSize(int(f.Fd()))
			if err != nil {
				return 0
			}
			return w
		}
	}
	return a
}

func isTerminal(v any) bool {
	f, ok := v.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// exitError ends the command with a code. With a nil err nothing is printed: the code
// is the message.
type exitError struct {
	code int
	side string
	err  error
}

func (e *exitError) Error() string {
	if e.err != nil {
		return e.err.Error()
	}
	return fmt.Sprintf("exit code %d", e.code)
}

func (e *exitError) Unwrap() error { return e.err }

// exitWith gives err its own exit code.
func exitWith(code int, err error) error { return &exitError{code: code, side: sideLauncher, err: err} }

// exitCode maps an error to the code of the process and to whose code it is.
func exitCode(err error) (code int, side string) {
	if err == nil {
		return exitOK, sideLauncher
	}
	if e, ok := errors.AsType[*exitError](err); ok {
		return e.code, e.side
	}
	if errs.Is(err, errs.Cancelled) {
		return exitCancelled, sideLauncher
	}
	return exitLauncher, sideLauncher
}

// main runs the command line and returns the exit code.
func (a *app) main(args []string) int {
	a.args = args
	root := a.root()
	root.SetArgs(args)
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	err := root.ExecuteContext(context.Background())
	a.screen.done()
	code, side := exitCode(err)
	if err == nil || a.told {
		return code
	}
	if e, ok := errors.AsType[*exitError](err); ok && e.err == nil {
		return code
	}
	if a.json {
		a.printJSON(errorDoc(err, code, side))
	} else {
		fmt.Fprint(a.err, errorText(err))
	}
	return code
}

// errorText is an error for people: each fault of a file is an error line of its own.
func errorText(err error) string {
	faults, ok := errors.AsType[configs.Faults](err)
	if !ok {
		return errs.Lines(err)
	}
	var b strings.Builder
	for _, f := range faults {
		fmt.Fprintf(&b, "error: %s\n", f)
	}
	for _, h := range errs.HintsOf(err) {
		fmt.Fprintf(&b, "hint: %s\n", h)
	}
	return b.String()
}

const rootLong = `launcher turns the machines you may use into one computer.

  launcher up SPEC          bring a cluster up from its TOML file
  launcher run -- CMD...    run a command on it
  launcher down             end it

The exit code of a foreground job is its command's own. Other codes:
  125  launcher itself failed     126  the command cannot be executed
  127  no such command            128+n  killed by signal n
  130  cancelled                  124  over its time, or a wait ran out

Which cluster: inside a run, its own; else -c NAME, $LAUNCHER_CLUSTER, the only one up.
State is under $LAUNCHER_HOME (default ~/.launcher). --json is documented by
"launcher help json".`

// root builds the whole command tree.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:               "launcher COMMAND",
		Short:             "many machines as one computer",
		Long:              rootLong,
		SilenceErrors:     true,
		SilenceUsage:      true,
		Args:              cobra.ArbitraryArgs,
		DisableAutoGenTag: true,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.Help()
			}
			return a.unknownCommand(c, args[0])
		},
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		a.guessJSON()
		return errs.New(errs.Invalid, "%s: %s", c.CommandPath(), err).Hint("`%s --help` lists the flags", c.CommandPath())
	})
	root.PersistentFlags().BoolVar(&a.json, "json", false, `print JSON ("launcher help json" has the shapes)`)
	root.PersistentFlags().StringVarP(&a.cluster, "cluster", "c", "", "the cluster to talk to (default $LAUNCHER_CLUSTER, or the only one up)")

	root.AddGroup(
		&cobra.Group{ID: "cluster", Title: "Clusters:"},
		&cobra.Group{ID: "work", Title: "Work:"},
		&cobra.Group{ID: "show", Title: "What is going on:"},
		&cobra.Group{ID: "inside", Title: "Inside a run:"},
		&cobra.Group{ID: "other", Title: "Other:"},
	)
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("cluster", a.cmdUp(), a.cmdDown(), a.cmdDoctor(), a.cmdDrain(), a.cmdForget())
	add("work", a.cmdRun(), a.cmdSubmit(), a.cmdTrain(), a.cmdSweep(), a.cmdAttach(), a.cmdCancel(), a.cmdWait(), a.cmdExec(), a.cmdSSH(), a.cmdCp())
	add("show", a.cmdStatus(), a.cmdJobs(), a.cmdTasks(), a.cmdActors(), a.cmdObjects(), a.cmdTimeline(), a.cmdMetrics(), a.cmdLogs(), a.cmdNodes(), a.cmdPools(), a.cmdWhy())
	add("inside", a.cmdReport(), a.cmdShouldLeave(), a.cmdParam(), a.cmdCheckpoint())
	add("other", a.cmdBench(), a.cmdVersion(), a.cmdCompletion())
	root.SetHelpCommandGroupID("other")
	root.AddCommand(a.helpTopics()...)
	root.AddCommand(a.hiddenCommands()...)
	root.AddCommand(a.laterCommands()...)
	return root
}

func (a *app) unknownCommand(root *cobra.Command, name string) error {
	a.guessJSON()
	e := errs.New(errs.Invalid, "there is no command %q", name)
	root.SuggestionsMinimumDistance = 2
	if s := root.SuggestionsFor(name); len(s) > 0 {
		return e.Hint("did you mean %s?", strings.Join(quoteAll(s), " or "))
	}
	return e.Hint("to run a program: launcher run -- %s", name).Hint("`launcher help` lists the commands")
}

// guessJSON looks for --json itself when the flags could not be parsed to the end.
func (a *app) guessJSON() {
	args := a.args
	if i := slices.Index(args, "--"); i >= 0 {
		args = args[:i]
	}
	a.json = a.json || slices.Contains(args, "--json")
}

// args checks the number of a command's arguments; use is what the user should have typed.
func argCount(lo, hi int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) >= lo && (hi < 0 || len(args) <= hi) {
			return nil
		}
		if len(args) < lo {
			return errs.New(errs.Invalid, "%s: an argument is missing", c.CommandPath()).Hint("usage: launcher %s", c.Use)
		}
		return errs.New(errs.Invalid, "%s: one argument too many: %q", c.CommandPath(), args[hi]).Hint("usage: launcher %s", c.Use)
	}
}

// note prints a line for people on the error stream; --json and pipes of results stay clean.
func (a *app) note(format string, args ...any) {
	if !a.json {
		a.screen.line(fmt.Sprintf(format, args...))
	}
}

// home is the absolute $LAUNCHER_HOME.
func home() (string, error) {
	h := os.Getenv("LAUNCHER_HOME")
	if h == "" {
		u, err := os.UserHomeDir()
		if err != nil {
			return "", errs.Wrap(errs.Invalid, err, "no home directory").Hint("set LAUNCHER_HOME to a directory of yours")
		}
		h = filepath.Join(u, ".launcher")
	}
	h, err := filepath.Abs(h)
	if err != nil {
		return "", errs.Wrap(errs.Invalid, err, "LAUNCHER_HOME")
	}
	return h, nil
}

func quoteAll(s []string) []string {
	out := make([]string, len(s))
	for i, v := range s {
		out[i] = "`launcher " + v + "`"
	}
	return out
}
