// The mutual authentication of the hop, both halves: HELLO and AUTH at the gateway, CHALLENGE and WELCOME at the node.
// An input is JSON: the two payloads.
import { issueCertificate, type Root } from '../../crypto/certificate.ts'
import { loadSodium } from '../../crypto/identity.ts'
import { type LinkIdentity, signLink } from '../../crypto/link-auth.ts'
import { authenticateToGateway } from '../../edge-node/link/authenticate.ts'
import { authenticateNode } from '../../gateway/sites/authenticate.ts'
import { createFrameStream } from '../../transport/frames.ts'
import type { Connection, Stream } from '../../transport/types.ts'
import { encodeFrame } from '../../wire/frame.ts'
import { FRAME } from '../../wire/types.ts'
import { VERSIONS } from '../../wire/versions.ts'
import { fixedKeys, fixedRoot } from '../keys.ts'
import { scriptedStream } from '../streams.ts'
import { demand, type Target } from '../target.ts'

const NOW = 1_800_000_000
const clock = { now: () => NOW * 1000, monotonicMs: () => 0 } as never
const binding = new Uint8Array(32).fill(12)
const NONCE = new Uint8Array(32).fill(8)
let root: Root
let site: LinkIdentity
let gateway: LinkIdentity

const base64 = (bytes: Uint8Array) => Buffer.from(bytes).toString('base64')
const jsonBytes = (value: unknown) => new Uint8Array(Buffer.from(typeof value === 'string' ? value : (JSON.stringify(value) ?? '')))

function identity(role: 'site' | 'gateway', id: string, fill: number): LinkIdentity {
  const keys = fixedKeys(fill)
  const claims = {
    role,
    id,
    notBefore: NOW - 10,
    notAfter: NOW + 10,
    serial: 'a1'.repeat(16),
    signPublic: keys.signPublic,
    boxPublic: keys.boxPublic,
  }
  return { keys, certificate: issueCertificate(root, claims) }
}

/** At the gateway. `signed`: AUTH has the signature of an honest node, if the HELLO allows it. */
async function atGateway(hello: unknown, auth: unknown, signed: boolean): Promise<void> {
  const greeting = jsonBytes(hello)
  const replies: Uint8Array[] = signed ? [] : [encodeFrame(FRAME.AUTH, jsonBytes(auth).subarray(0, 65_536))]
  const stream = scriptedStream(replies)
  const answering: Stream = {
    ...stream,
    async write(bytes) {
      await stream.write(bytes)
      if (!signed) return
      const { nonce } = JSON.parse(Buffer.from(bytes.subarray(5)).toString()) as { nonce: string }
      const nodeNonce = new Uint8Array(Buffer.from((hello as { nonce: string }).nonce, 'base64'))
      const seen = {
        version: VERSIONS.link.max,
        nodeNonce,
        gatewayNonce: new Uint8Array(Buffer.from(nonce, 'base64')),
        nodeCertificate: site.certificate,
        gatewayCertificate: gateway.certificate,
        binding,
        greeting,
      }
      replies.push(encodeFrame(FRAME.AUTH, jsonBytes({ ...(auth as object), signature: base64(signLink('node', site, seen)) })))
    },
    read: async () => replies.shift() ?? (await stream.read()),
  }
  const frames = createFrameStream(signed ? answering : stream)
  const authority = { identity: gateway, rootPublic: root.signPublic, clock }
  const peer = await authenticateNode({ type: FRAME.HELLO, payload: greeting }, frames, binding, authority)
  demand(signed && peer.certificate.id === 'oslo', 'an unauthenticated peer is accepted')
}

/** At the node. */
async function atNode(challenge: unknown, welcome: unknown, signed: boolean): Promise<void> {
  const replies = [
    encodeFrame(FRAME.CHALLENGE, jsonBytes(challenge).subarray(0, 65_536)),
    encodeFrame(FRAME.WELCOME, jsonBytes(welcome).subarray(0, 65_536)),
  ]
  const stream = scriptedStream([])
  const answering: Stream = {
    ...stream,
    async write(bytes) {
      await stream.write(bytes)
      if (!signed || stream.written.length !== 1) return
      const gatewayNonce = new Uint8Array(Buffer.from(String((challenge as { nonce: string } | null)?.nonce), 'base64'))
      if (gatewayNonce.length !== 32) return
      const seen = {
        version: VERSIONS.link.max,
        nodeNonce: NONCE,
        gatewayNonce,
        nodeCertificate: site.certificate,
        gatewayCertificate: gateway.certificate,
        binding,
        greeting: bytes.subarray(5),
      }
      replies[0] = encodeFrame(
        FRAME.CHALLENGE,
        jsonBytes({ ...(challenge as object), signature: base64(signLink('gateway', gateway, seen)) }).subarray(0, 65_536),
      )
    },
    read: async () => replies.shift() ?? null,
  }
  const connection = { binding, openStream: async () => answering } as unknown as Connection
  const { welcome: heard } = await authenticateToGateway({
    connection,
    purpose: 'control',
    incarnation: 1,
    identity: site,
    rootPublic: root.signPublic,
    clock,
    random: () => NONCE,
  })
  demand(signed, `an unauthenticated peer is accepted as ${heard.gateway}`)
}

const input = (how: number, value: unknown) => new Uint8Array(Buffer.from(`${String.fromCharCode(how)}${JSON.stringify(value)}`))

export const link: Target = {
  name: 'link',
  what: 'gateway/sites/authenticate.ts, edge-node/link/authenticate.ts: HELLO, CHALLENGE, AUTH, WELCOME',
  codes: [
    'FRAME_MALFORMED',
    'FRAME_TYPE',
    'VERSION_UNSUPPORTED',
    'AUTH_FAILED',
    'CONNECTION_LOST',
    'CERT_MALFORMED',
    'CERT_UNTRUSTED',
    'CERT_EXPIRED',
    'CERT_REVOKED',
  ],
  testRuns: 1000,
  jsonAt: 1,
  async setup() {
    await loadSodium()
    root = fixedRoot()
    site = identity('site', 'oslo', 2)
    gateway = identity('gateway', 'hub', 3)
  },
  seeds() {
    const hello = {
      version: VERSIONS.link.max,
      purpose: 'control',
      incarnation: 5,
      nonce: base64(NONCE),
      certificate: base64(site.certificate),
    }
    const challenge = {
      version: VERSIONS.link.max,
      nonce: base64(NONCE),
      certificate: base64(gateway.certificate),
      signature: base64(new Uint8Array(64)),
    }
    const auth = { signature: base64(new Uint8Array(64)) }
    const welcome = { gateway: 'hub', site: 'oslo', version: '0.1.0' }
    return [0, 1].flatMap(signed => [input(signed * 2, [hello, auth]), input(signed * 2 + 1, [challenge, welcome])])
  },
  async run(bytes) {
    const how = (bytes[0] ?? 0) % 4
    let pair: unknown
    try {
      pair = JSON.parse(Buffer.from(bytes.subarray(1)).toString())
    } catch {
      return
    }
    const [first, second] = Array.isArray(pair) ? pair : [pair, {}]
    await (how % 2 === 0 ? atGateway : atNode)(first, second, how >= 2)
  },
}
