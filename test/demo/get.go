package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/firsthop/firsthop/test/standin"
	"golang.org/x/sys/unix"
)

// get is `demo get [-n N] URL…`: it makes N connections to each URL, one after the other, and prints how many each API
// server answered and how many failed, and how. It trusts ./ca.crt.
func get(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("demo get", flag.ContinueOnError)
	n := flags.Int("n", 1, "how many connections to each URL")
	if err := flags.Parse(args); err != nil {
		return err
	}
	pem, err := os.ReadFile("ca.crt")
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return errors.New("ca.crt holds no certificate")
	}
	// A connection for each request, and no proxy: the zero value asks no environment.
	client := &http.Client{
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true},
		Timeout:   5 * time.Second,
	}
	for _, url := range flags.Args() {
		outcomes := make(map[string]int)
		for range *n {
			outcomes[outcome(ctx, client, url)]++
		}
		fmt.Println(url+":", summary(outcomes))
	}
	return ctx.Err()
}

// outcome connects once and says in two or three words what came of it.
func outcome(ctx context.Context, client *http.Client, url string) string {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err.Error()
	}
	resp, err := client.Do(req)
	var netErr net.Error
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return "refused"
	case errors.Is(err, unix.ENETUNREACH):
		return "network unreachable"
	case errors.As(err, &netErr) && netErr.Timeout():
		return "timed out"
	case err != nil:
		return err.Error()
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return resp.Status
	}
	return "answered by " + resp.Header.Get(standin.ServedBy)
}

func summary(outcomes map[string]int) string {
	var parts []string
	for what, n := range outcomes {
		parts = append(parts, fmt.Sprintf("%d %s", n, what))
	}
	slices.SortFunc(parts, func(a, b string) int {
		_, a, _ = strings.Cut(a, " ")
		_, b, _ = strings.Cut(b, " ")
		return strings.Compare(a, b)
	})
	return strings.Join(parts, ", ")
}
