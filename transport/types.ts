// The transport interface: what every engine provides and the rest of Godwit relies on. Engines: quic, tls,
// webtransport, memory. Always holds: a write resolves only when the engine has room (backpressure); a read returns
// bytes in order; the end of a stream (null), its reset (STREAM_RESET) and the loss of its connection (CONNECTION_LOST)
// are distinct.
import type { StrangerLimits } from './stranger.ts'

/** One bidirectional stream of bytes. Each direction ends on its own (half-close). */
export type Stream = {
  /** Engine's number for logs; not the protocol's stream index. */
  readonly id: number
  /** Resolves when the bytes are accepted and the engine has room for more. The buffer may be reused after that. */
  write(bytes: Uint8Array): Promise<void>
  /** Half-close: no more writes; all written bytes will arrive. */
  end(): Promise<void>
  /** Next bytes (any size > 0), or null at the peer's end(). One read at a time. */
  read(): Promise<Uint8Array | null>
  /** Abandons both directions at once; the peer's pending read and write reject with STREAM_RESET. Idempotent. */
  reset(reason?: string): void
}

/** Path statistics of an engine; unknown fields are absent. */
export type PathStats = {
  rttMs?: number | undefined
  congestionWindowBytes?: number | undefined
  sentBytes?: number | undefined
  receivedBytes?: number | undefined
  lostPackets?: number | undefined
  sentPackets?: number | undefined
  /** Minimum round trip so far. */
  rttMinMs?: number | undefined
  /** Mean deviation of round trips. */
  rttDeviationMs?: number | undefined
  /** Congestion control of this end: bbr, cubic, ... */
  congestion?: string | undefined
}

export type CloseReason = { code: 'CLOSED' | 'CONNECTION_LOST'; message: string }

/** One connection with many streams; the layer above authenticates it. */
export type Connection = {
  readonly engine: EngineName
  readonly remoteAddress: string
  /**
   * SHA-256 of the server's transport certificate (or public key) as this end sees it: both ends have the same value
   * unless an attacker is between them. The node-gateway authentication signs it (channel binding, RFC 5929's idea). 32
   * bytes.
   */
  readonly binding: Uint8Array
  openStream(): Promise<Stream>
  /**
   * Next stream the peer opened, or null when the connection has ended. A stream is visible to the peer after its first
   * write.
   */
  acceptStream(): Promise<Stream | null>
  stats(): PathStats
  /** Number of pipes that its streams are distributed over; absent: one. */
  readonly lanes?: number
  /** Call when the peer is authenticated: removes the limits of ListenOptions. */
  trust?(): void
  close(reason?: string): Promise<void>
  /** Resolves (never rejects) when the connection has ended, for any reason. */
  readonly closed: Promise<CloseReason>
}

export type Listener = {
  readonly address: { host: string; port: number }
  /** Next inbound connection, or null when the listener is closed. */
  accept(): Promise<Connection | null>
  /** Handshakes in progress, if the engine counts them (quic). */
  handshakes?(): number
  close(): Promise<void>
}

export type EngineName = 'quic' | 'tls' | 'webtransport' | 'memory'

export type ListenOptions = {
  host: string
  /** 0 chooses a free port. UDP for quic and HTTP/3, TCP for tls and HTTP/2. */
  port: number
  /** Limits of a peer before trust(); exceeding them ends its connection. Absent: the limits after trust(). */
  strangers?: StrangerLimits | undefined
  signal?: AbortSignal
}

export type ConnectOptions = {
  host: string
  port: number
  /** Rejects with CONNECT_TIMEOUT after this. Default 10_000. */
  timeoutMs?: number
  signal?: AbortSignal
}

export type Engine = {
  readonly name: EngineName
  /** Loads native parts; returns the reason if that fails. Never throws. */
  available(): Promise<{ ok: true; detail?: string } | { ok: false; reason: string }>
  listen(options: ListenOptions): Promise<Listener>
  connect(options: ConnectOptions): Promise<Connection>
}

/** The chosen engine, and the attempts before it: for the log and `godwit doctor`. */
export type Selection = { engine: EngineName; tried: { engine: EngineName; outcome: string; tookMs: number }[] }
