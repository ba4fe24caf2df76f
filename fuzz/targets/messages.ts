// edge-node/migration/messages.ts and peer.ts: messages of the other node inside the sealed control stream, and their
// first processing: the needs of an offered VM (its specification is YAML), the manifest, acknowledgements.

import { compareManifests, manifestHash } from '../../crypto/channel/manifest.ts'
import { loadSodium } from '../../crypto/identity.ts'
import type { Channel } from '../../edge-node/channel/channel.ts'
import { decodeMessage, encodeMessage, type Message } from '../../edge-node/migration/messages.ts'
import { createPeer, encodeAck } from '../../edge-node/migration/peer.ts'
import { parseNeeds, preflightProblems } from '../../edge-node/vm/preflight.ts'
import { GodwitError } from '../../wire/errors.ts'
import type { Frame } from '../../wire/frame.ts'
import { FRAME } from '../../wire/types.ts'
import { demand, type Target } from '../target.ts'
import { demandPlain } from './control.ts'

const hash = 'ab'.repeat(32)
const needs = {
  ...{
    spec: 'name: web-1\nmemory: 64MiB\ndisks:\n  - { file: boot.img, mode: readonly }\n',
    qemuVersion: '10.0.2',
    accelerator: 'kvm',
    method: 'live',
  },
  ...{ files: { 'readonly/boot.img': { bytes: 512, root: hash } }, sharedId: 'x' },
}
const host = {
  qemuVersion: '10.0.2',
  accelerators: ['kvm'] as const,
  machines: ['pc-i440fx-9.0'],
  cpus: {},
  vcpus: 4,
  memoryFreeBytes: 2 ** 32,
  diskFreeBytes: 2 ** 32,
  files: {},
  taps: [],
}
const VALID: unknown[] = [
  { type: 'OFFER', needs },
  { type: 'ACCEPT' },
  { type: 'REFUSE', error: { code: 'PREFLIGHT_MEMORY', message: 'no' } },
  {
    type: 'PAGES',
    blocks: [
      { name: 'ram0', bytes: 4096 },
      { name: 'pc.bios', bytes: 0 },
    ],
  },
  { type: 'SHUT', code: 0 },
  {
    type: 'EOS',
    attempt: 1,
    streams: [
      { index: 1, records: 3, digest: hash },
      { index: 2, records: 1, digest: hash },
    ],
  },
  { type: 'LOADED', manifestHash: hash, stateMs: 1.5, loadMs: 2 },
  { type: 'GRANT', vm: 'web-1', epoch: 8, migrationId: '00112233445566778899aabbccddeeff', manifestHash: hash },
  { type: 'RUNNING', resumeMs: 3 },
  { type: 'ABORT', error: { code: 'QEMU_EXITED', message: 'x', hint: 'y' } },
  { type: 'CONTINUE', taken: 2 },
  { type: 'HELD', taken: 3, frames: [7, 0, 12] },
]
const spec = (text: string) => ({ type: 'OFFER', needs: { ...needs, spec: text } })

/** The immediate processing of a message by the two nodes. */
function act(message: Message): void {
  demandPlain(message)
  decodeMessage(encodeMessage(message))
  if (message.type === 'OFFER')
    for (const problem of preflightProblems(parseNeeds(message.needs), host))
      demand(problem.message.length < 8192, 'a refusal as long as its cause')
  if (message.type !== 'EOS') return
  const sent = { streams: message.streams.map(({ index, records, digest }) => ({ index, records, digest: Buffer.from(digest, 'hex') })) }
  const arrived = { streams: [1, 2].map(index => ({ index, records: 3, digest: Buffer.from(hash, 'hex') })) }
  demand(manifestHash(arrived).length === 32, 'no hash')
  compareManifests(sent, arrived)
}

/** A meeting in which the other side sends all this, frame by frame. */
async function meet(script: readonly unknown[]): Promise<void> {
  const failures: unknown[] = []
  let acknowledged = 0
  const channel = {
    async *frames(): AsyncGenerator<Frame, void> {
      for (const item of script) {
        if (typeof item === 'string') yield { type: FRAME.ACK, payload: Buffer.from(item, 'hex') }
        else if (typeof item === 'number')
          yield { type: FRAME.RETURN_PATH, payload: encodeAck(Math.abs(Math.floor(item)) || 0).subarray(0, 7) }
        else yield { type: FRAME.MESSAGE, payload: Buffer.from(JSON.stringify(item)) }
      }
    },
    finish: async () => {},
  } as unknown as Channel
  const over = new AbortController()
  const peer = createPeer({
    channel,
    signal: over.signal,
    onAck: total => {
      demand(Number.isFinite(total) && total >= 0, 'an acknowledgement that is no number')
      acknowledged = total
    },
    fail: error => {
      failures.push(error)
      over.abort(error)
    },
  })
  const heard = peer.expect(['LOADED', 'RUNNING'], { ms: 60_000, what: 'an answer' }).catch(error => failures.push(error))
  for (let turn = 0; turn < 3; turn++) await new Promise<void>(resolve => setImmediate(resolve))
  over.abort(new GodwitError('CONNECTION_LOST', 'over'))
  await heard
  demand(acknowledged >= 0, 'acknowledged')
  for (const failure of failures) {
    if (!(failure instanceof GodwitError)) throw failure
    // An unknown code of the other side becomes INTERNAL; an own failure has a cause.
    if (failure.code === 'INTERNAL' && failure.cause !== undefined) throw failure.cause
  }
  const [first] = failures as GodwitError[]
  if (first) throw first
}

const KINDS = 2
const input = (kind: number, value: unknown) => new Uint8Array(Buffer.from(`${String.fromCharCode(kind)}${JSON.stringify(value)}`))

export const messages: Target = {
  name: 'messages',
  what: 'edge-node/migration/messages.ts, peer.ts, vm/preflight.ts: messages between nodes',
  codes: [
    'FRAME_MALFORMED',
    'VM_SPEC_INVALID',
    'VERSION_UNSUPPORTED',
    'MANIFEST_MISMATCH',
    'CONNECTION_LOST',
    'LIMIT_EXCEEDED',
    'PREFLIGHT_MEMORY',
    'QEMU_EXITED',
    'INTERNAL',
  ],
  testRuns: 2500,
  // The YAML of a specification of 64 KiB may consist of brackets, with a node for each.
  memoryBytes: 48 * 1024 * 1024,
  jsonAt: 1,
  words: ['"type":"EOS"', '"OFFER"', '&a [*a]', '<<: ', '!!binary ', '- ', ': ', '\\n', '? ', '*a', '"index":', '18446744073709551615'],
  setup: loadSodium,
  seeds: () => [
    ...VALID.map(message => input(0, message)),
    input(1, VALID),
    input(1, [VALID[6], 'ffffffffffffffff', 5, VALID[8], VALID[9]]),
    input(1, ['00', VALID[1]]),
  ],
  hostile() {
    const laughs = `a: &a [x,x,x,x,x,x,x,x,x]\n${'bcdefghi'
      .split('')
      .map((name, i) => `${name}: &${name} [${Array(9).fill(`*${'abcdefghi'[i]}`).join(',')}]\n`)
      .join('')}`
    return {
      'a billion laughs': input(0, spec(laughs)),
      'deep YAML': input(0, spec(`${'['.repeat(20_000)}${']'.repeat(20_000)}`)),
      'deep YAML of maps': input(0, spec(`${'{a: '.repeat(8000)}1${'}'.repeat(8000)}`)),
      'deep JSON':
        input(0, { type: 'OFFER', needs: 'V' }).length > 0
          ? new Uint8Array(Buffer.from(`\u0000{"type":"OFFER","needs":${'['.repeat(30_000)}${']'.repeat(30_000)}}`))
          : new Uint8Array(),
      'many streams': input(0, { type: 'EOS', attempt: 1, streams: Array(20_000).fill(0) }),
      'many blocks': input(0, { type: 'PAGES', blocks: Array(20_000).fill({}) }),
      'many files': input(0, {
        type: 'OFFER',
        needs: { ...needs, files: Object.fromEntries(Array.from({ length: 3000 }, (_, i) => [`f${i}`, 0])) },
      }),
      'many unknown keys': input(0, {
        type: 'OFFER',
        needs: { ...needs, ...Object.fromEntries(Array.from({ length: 5000 }, (_, i) => [`k${i}`, 0])) },
      }),
      'many unknown keys in the specification': input(0, spec(Array.from({ length: 5000 }, (_, i) => `k${i}: 0\n`).join(''))),
      'messages out of turn': input(1, Array(200).fill({ type: 'ACCEPT' })),
    }
  },
  async run(bytes) {
    const kind = (bytes[0] ?? 0) % KINDS
    const text = bytes.subarray(1)
    if (kind === 0) return act(decodeMessage(text))
    let script: unknown
    try {
      script = JSON.parse(Buffer.from(text).toString())
    } catch {
      return
    }
    if (Array.isArray(script)) await meet(script)
  },
}
