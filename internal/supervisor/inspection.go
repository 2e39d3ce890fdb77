package supervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"

	"docker-usermode-linux/internal/config"
	"docker-usermode-linux/internal/control"
)

// serveControl lets others look at the guest and run commands in it until ctx ends: through the sockets of the run in
// dir, and Prometheus through metrics, unless that is nil. What it starts counts as running.
func serveControl(
	ctx context.Context, running *sync.WaitGroup, dir string, metrics net.Listener, g *guest,
) error {
	exec, err := control.Listen(dir, control.ExecSocket)
	if err != nil {
		return errors.Join(err, closeIf(metrics))
	}
	socket, err := control.Listen(dir, control.Socket) // last: it is what a guest is found by
	if err != nil {
		return errors.Join(err, exec.Close(), closeIf(metrics))
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		control.JSON(func() Status { return g.status(r.Context()) }).ServeHTTP(w, r)
	})
	if g.network == nil {
		mux.HandleFunc("GET /net", func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "the guest has no network (NET=off)", http.StatusNotFound)
		})
	} else {
		mux.Handle("GET /net", control.JSON(g.network.Inspect))
	}
	running.Go(func() { serveHTTP(ctx, "control", socket, mux, g.log) })
	running.Go(func() { g.link.serveExec(ctx, running, exec) })
	if metrics == nil {
		return nil
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(netCollector{g.network})
	metricsMux := http.NewServeMux()
	metricsMux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		// One scrape at a time is normal, a few may overlap; more are somebody's mistake.
		MaxRequestsInFlight: 4,
	}))
	running.Go(func() { serveHTTP(ctx, "metrics", metrics, metricsMux, g.log) })
	return nil
}

// listenMetrics opens the address of NET_METRICS. Without a port there is none. 0.0.0.0 and [::] are one family each, as
// in PORTS; no address is both.
func listenMetrics(ctx context.Context, at netip.AddrPort, names config.Names) (net.Listener, error) {
	if at.Port() == 0 {
		return nil, nil
	}
	network, address := "tcp4", at.String()
	switch {
	case !at.Addr().IsValid():
		network, address = "tcp", fmt.Sprintf(":%d", at.Port())
	case at.Addr().Is6():
		network = "tcp6"
	}
	var config net.ListenConfig
	l, err := config.Listen(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("%s=%q: %w; give an address that is there and a port that is free", names.Of("NET_METRICS"), address, err)
	}
	return l, nil
}

// closeIf closes a listener, if there is one.
func closeIf(l net.Listener) error {
	if l == nil {
		return nil
	}
	return l.Close()
}

func serveHTTP(ctx context.Context, service string, l net.Listener, mux *http.ServeMux, log zerolog.Logger) {
	if err := control.Serve(ctx, l, mux, log); err != nil {
		log.Error().Err(err).Str("service", service).Msg("a service of the supervisor ended")
	}
}
