package supervisor

import (
	"github.com/prometheus/client_golang/prometheus"

	"docker-usermode-linux/internal/slirp"
)

// netCollector gives Prometheus what Inspect tells. Flows are only counted there: a time series for each would be
// without end.
type netCollector struct {
	network interface{ Inspect() slirp.Inspection }
}

func netMetric(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("uml_net_"+name, help, labels, nil)
}

var (
	metricUp          = netMetric("up", "Whether the guest's NIC has been seen.")
	metricLive        = netMetric("live_flows", "Flows that live.", "proto")
	metricLimit       = netMetric("live_flows_limit", "Flows that may live at one time.", "proto")
	metricFlows       = netMetric("flows_total", "Flows since the start.", "proto")
	metricRefused     = netMetric("flows_refused_total", "Flows refused because of the limit.", "proto")
	metricPayload     = netMetric("payload_bytes_total", "Payload of TCP and UDP.", "proto", "direction")
	metricExpired     = netMetric("flows_expired_total", "Flows that ended because they were idle.")
	metricPolicy      = netMetric("policy_closed_total", "Connections and datagrams of the guest to closed addresses.")
	metricDial        = netMetric("dial_errors_total", "Connections of the guest that the host could not make.")
	metricGuest       = netMetric("guest_refused_total", "Forwarded connections that the guest did not take.")
	metricGuestUDP    = netMetric("guest_unreachable_total", "Datagrams of forwarded ports that the guest refused.")
	metricResets      = netMetric("resets_total", "Connections that ended with a reset or an error on either side.")
	metricPending     = netMetric("pending_refused_total", "Connections refused because too many were being made.")
	metricUDPDropped  = netMetric("udp_dropped_datagrams_total", "Datagrams lost by the bridge.")
	metricDNSQueries  = netMetric("dns_queries_total", "Queries of the guest to the name server.")
	metricDNSFailures = netMetric("dns_failures_total", "Queries that no server of the container answered.")
	metricDNSDropped  = netMetric("dns_dropped_total", "Queries and connections beyond what the name server takes at a time.")
	metricFrames      = netMetric("link_frames_total", "Ethernet frames from (in) and to (out) the guest.", "direction")
	metricBytes       = netMetric("link_bytes_total", "Bytes of Ethernet frames from (in) and to (out) the guest.", "direction")
	metricDropped     = netMetric("link_dropped_frames_total", "Ethernet frames lost by the bridge.", "direction")
	metricWaits       = netMetric("link_waits_total", "Times that a sender of data waited for the guest.")
	metricPcap        = netMetric("pcap_dropped_frames_total", "Frames that are missing in the packet capture.")
	metricDrops       = netMetric("drops_total", "All that was lost by the bridge: frames, datagrams, DNS queries. 0 in normal life.")
	metricClients     = netMetric("forward_clients_total", "Clients of forwarded ports since the start.", "proto", "host", "guest")
	metricForwards    = netMetric("forward_live_clients", "Clients of forwarded ports that are there now.", "proto", "host", "guest")
)

// Describe implements prometheus.Collector.
func (c netCollector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements prometheus.Collector.
func (c netCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	i := c.network.Inspect()
	up := 0
	if i.Up {
		up = 1
	}
	gauge(metricUp, up)
	s := i.Counters
	for _, p := range []struct {
		proto          string
		live, limit    int
		flows, refused uint64
	}{
		{"tcp", s.LiveTCP, i.Limits.TCPFlows, s.TCPFlows, s.TCPRefused},
		{"udp", s.LiveUDP, i.Limits.UDPFlows, s.UDPFlows, s.UDPRefused},
		{"icmp", s.LivePing, i.Limits.PingFlows, s.PingFlows, s.PingRefused},
	} {
		gauge(metricLive, p.live, p.proto)
		gauge(metricLimit, p.limit, p.proto)
		count(metricFlows, p.flows, p.proto)
		count(metricRefused, p.refused, p.proto)
	}
	count(metricPayload, s.TCPToHost, "tcp", "to_host")
	count(metricPayload, s.TCPToGuest, "tcp", "to_guest")
	count(metricPayload, s.UDPToHost, "udp", "to_host")
	count(metricPayload, s.UDPToGuest, "udp", "to_guest")
	count(metricExpired, s.Expired)
	count(metricPolicy, s.PolicyClosed)
	count(metricDial, s.DialErrors)
	count(metricGuest, s.GuestRefused)
	count(metricGuestUDP, s.GuestUnreachable)
	count(metricResets, s.Resets)
	count(metricPending, s.PendingLimit)
	count(metricUDPDropped, s.UDPDropped)
	count(metricDNSQueries, s.DNSQueries)
	count(metricDNSFailures, s.DNSFailures)
	count(metricDNSDropped, s.DNSDropped)
	count(metricFrames, s.FramesIn, "in")
	count(metricFrames, s.FramesOut, "out")
	count(metricBytes, s.BytesIn, "in")
	count(metricBytes, s.BytesOut, "out")
	count(metricDropped, s.FramesDroppedIn, "in")
	count(metricDropped, s.FramesDroppedOut, "out")
	count(metricWaits, s.Waits)
	count(metricPcap, s.PcapDropped)
	count(metricDrops, i.Drops)
	for _, f := range i.Forwards {
		labels := []string{f.Proto, f.Host(), f.Guest()}
		count(metricClients, f.Clients, labels...)
		gauge(metricForwards, f.Live, labels...)
	}
}
