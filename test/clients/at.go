package clients

// At is the client that is written in Go, at a path where Build or go build put it: for packages that build it once for
// all their tests.
func At(path string) Program { return Program{"Go", []string{path}} }
