// Package sweep decides a hyperparameter search: which configurations are tried, which
// of them are stopped early, and when the search is over. It is a jobs.Machine: pure,
// deterministic from the spec (its seed included) and the order of calls.
//
// Trial i has the parameters that Params(spec, i) gives, so no parameter is part of the
// state. Steps are the units of training: what a program reports as step, counted from 1
// by the SDKs when it names none.
package sweep
