// Loads quinn (Rust QUIC) from the native binaries of @chainsafe/libp2p-quic: the only file that knows the package.
// Enters: only the platform. Leaves: the binding's classes, an ephemeral identity, the peer's public key of a
// connection. The wrapper package exports only its libp2p transport, so the platform package (one .node file) is
// required directly: from here, or from the wrapper's folder. The JS part of libp2p is never loaded. libp2p's
// certificate extension proves possession of an Ed25519 key on both ends; it is the channel binding, not the
// authentication (https://github.com/libp2p/specs/blob/master/tls/tls.md).
import { generateKeyPairSync } from 'node:crypto'
import { createRequire } from 'node:module'

export type NativeStream = {
  id(): string
  /** At most `max` bytes, or null after the peer's FIN. Holds the read half's lock while it waits. */
  read(max: number): Promise<Uint8Array | null>
  /** Resolves when all bytes are in quinn's send buffer. Holds the write half's lock while it waits. */
  write(bytes: Uint8Array): Promise<void>
  finishWrite(): Promise<void>
  /** Waits for the write half's lock: behind a blocked write it does nothing until that write ends. */
  resetWrite(): Promise<void>
  /** Waits for the read half's lock, likewise. */
  stopRead(): Promise<void>
}
export type NativeConnection = {
  abort(): void
  closed(): Promise<void>
  inboundStream(): Promise<NativeStream>
  outboundStream(): Promise<NativeStream>
  remoteMultiaddr(): string
  /** Whole milliseconds. */
  rtt(): number
  stats(): { pathCwnd: number; pathLostPackets: number; pathSentPackets: number; udpTxBytes: number; udpRxBytes: number }
}
export type NativeServer = {
  port(): number
  inboundConnection(): Promise<NativeConnection>
  abort(): Promise<void>
  /** Handshakes that inboundConnection calls have begun since the start. */
  stats(): { acceptedHandshakes: number }
}
type NativeClient = { outboundConnection(ip: string, port: number): Promise<NativeConnection>; abort(): void }
type QuinnOptions = {
  privateKeyProto: Uint8Array
  handshakeTimeout: number
  maxIdleTimeout: number
  keepAliveInterval: number
  maxConcurrentStreamLimit: number
  maxStreamData: number
  maxConnectionData: number
  receiveBufferSize: number
  sendBufferSize: number
  shutdownTimeout: number
}
type QuinnConfig = { readonly quinnConfig: unique symbol }
export type NativeQuic = {
  QuinnConfig: new (options: QuinnOptions) => QuinnConfig
  Server: new (config: QuinnConfig, ip: string, port: number) => NativeServer
  /** family: 0 for IPv4, 1 for IPv6. */
  Client: new (
    config: QuinnConfig,
    family: 0 | 1,
  ) => NativeClient
}

const WRAPPER = '@chainsafe/libp2p-quic'
const abis = process.platform === 'linux' ? ['-gnu', '-musl'] : process.platform === 'win32' ? ['-msvc'] : ['']
let loaded: { native: NativeQuic; detail: string } | undefined

/** The binding; throws an Error that lists the attempts. */
export function loadQuic(): { native: NativeQuic; detail: string } {
  if (loaded) return loaded
  const here = createRequire(import.meta.url)
  const requires = [here]
  for (const folder of here.resolve.paths(WRAPPER) ?? []) requires.push(createRequire(`${folder}/${WRAPPER}/package.json`))
  const failures = new Set<string>()
  for (const abi of abis) {
    const name = `${WRAPPER}-${process.platform}-${process.arch}${abi}`
    for (const require of requires) {
      try {
        const native = require(name) as NativeQuic
        if (!native.QuinnConfig || !native.Server || !native.Client) throw new Error('it lacks the required classes')
        const { version } = require(`${name}/package.json`) as { version: string }
        loaded = { native, detail: `quinn by ${name} ${version}` }
        return loaded
      } catch (error) {
        const missing = (error as NodeJS.ErrnoException).code === 'MODULE_NOT_FOUND'
        failures.add(missing ? `${name} is not installed` : `${name}: ${(error as Error).message}`)
      }
    }
  }
  throw new Error([...failures].join('; '))
}

/**
 * A fresh Ed25519 identity: `proto` is libp2p's PrivateKey protobuf {1: type = 1 (Ed25519), 2: 64 bytes private ||
 * public}.
 */
export function createIdentity(): { proto: Uint8Array; publicKey: Uint8Array } {
  const { d = '', x = '' } = generateKeyPairSync('ed25519').privateKey.export({ format: 'jwk' })
  const publicKey = Buffer.from(x, 'base64url')
  return { proto: Buffer.concat([Buffer.of(0x08, 0x01, 0x12, 64), Buffer.from(d, 'base64url'), publicKey]), publicKey }
}

const BASE58 = '123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz'
/** Identity multihash of libp2p's PublicKey protobuf {1: type = 1, 2: 32 bytes}. */
const PEER_ID_PREFIX = Buffer.of(0x00, 0x24, 0x08, 0x01, 0x12, 0x20)

/**
 * '/ip4/1.2.3.4/udp/5/quic-v1/p2p/12D3...' as host, port and Ed25519 public key (32 bytes); throws an Error on anything
 * else.
 */
export function parseRemote(multiaddr: string): { host: string; port: number; publicKey: Uint8Array } {
  const [, family, host, udp, port, , p2p, peerId] = multiaddr.split('/')
  if ((family !== 'ip4' && family !== 'ip6') || udp !== 'udp' || p2p !== 'p2p' || !host || !peerId)
    throw new Error(`unexpected peer address ${multiaddr}`)
  let value = 0n
  for (const letter of peerId) {
    const digit = BASE58.indexOf(letter)
    if (digit < 0) throw new Error(`unexpected peer id ${peerId}`)
    value = value * 58n + BigInt(digit)
  }
  // The identity multihash begins with a zero byte, which base58 writes as one leading '1' and the number drops.
  const bytes = Buffer.from(value.toString(16).padStart(76, '0'), 'hex')
  if (bytes.length !== 38 || !bytes.subarray(0, 6).equals(PEER_ID_PREFIX)) throw new Error(`peer id ${peerId} is not an Ed25519 key`)
  return { host, port: Number(port), publicKey: bytes.subarray(6) }
}
