// wire/control.ts by checkJson: messages between node and gateway on the hop. Accepted values must be plain data that
// can be forwarded unchanged.

import { isDeepStrictEqual } from 'node:util'
import * as control from '../../wire/control.ts'
import { check, checkJson, type z } from '../../wire/schema.ts'
import { MIB } from '../../wire/units.ts'
import { demand, type Target } from '../target.ts'

const SCHEMAS: readonly [string, z.ZodType][] = [
  ['HELLO', control.Hello],
  ['CHALLENGE', control.Challenge],
  ['AUTH', control.Auth],
  ['WELCOME', control.Welcome],
  ['JOIN', control.Join],
  ['ENROL_HELLO', control.EnrolHello],
  ['ENROL', control.Enrol],
  ['ENROL_REPLY', control.EnrolReply],
  ['ERROR', control.ErrorBody],
  ...Object.entries(control.METHODS),
]

const id = '00112233445566778899aabbccddeeff'
const plan: control.Plan = {
  ...{ version: 1, migrationId: id, vm: 'web-1', epoch: 7, source: 'oslo', target: 'bergen', method: 'live', downtimeMs: 300, streams: 4 },
  ...{ attempt: 1, compression: 'zstd', createdAt: 1_800_000_000_000 },
}
const report = {
  ...{ migrationId: id, vm: 'web-1', source: 'oslo', target: 'bergen', method: 'live', outcome: 'completed', startedAt: 1, totalMs: 2.5 },
  ...{ downtimeMs: 100, downtimeParts: { finalPagesMs: 1, deviceStateMs: 2, loadMs: null, commitMs: 0.1, resumeMs: 3, more: 1 } },
  ...{
    guestBytes: 1,
    pagesZero: 1,
    pagesDuplicate: 1,
    pagesUnchanged: 0,
    pagesCompressed: 1,
    pagesRaw: 1,
    bytesZero: 1,
    bytesDuplicate: 1,
  },
  ...{
    bytesUnchanged: 1,
    bytesCompressed: 1,
    bytesRaw: 1,
    wireBytes: 9,
    ratio: 0.5,
    rounds: 3,
    transport: 'quic',
    streams: 4,
    notes: ['a note'],
  },
}
const site = {
  ...{ site: 'oslo', incarnation: 1, version: '0.1.0', migrations: [id] },
  host: { qemuVersion: '10.0.2', accelerators: ['kvm', 'tcg'], memoryFreeBytes: 1, diskFreeBytes: 2, vcpus: 8 },
  vms: [{ name: 'web-1', state: 'running', epoch: 7, memoryBytes: 1, vcpus: 1, compression: 'off' }],
}
const nonce = `${'A'.repeat(43)}=`
const VALID: readonly [string, unknown][] = [
  ['HELLO', { version: 1, purpose: 'control', incarnation: 5, nonce, certificate: 'AAAA' }],
  ['HELLO', { version: 1, versionMax: 2, purpose: 'data', incarnation: 5, nonce, certificate: 'AAAA' }],
  ['CHALLENGE', { version: 1, nonce, certificate: 'AAAA', signature: 'AAAA' }],
  ['AUTH', { signature: 'AAAA' }],
  ['WELCOME', { gateway: 'hub', site: 'oslo', version: '0.1.0' }],
  ['JOIN', { sessionId: id, index: 2, attempt: 1 }],
  ['ENROL_HELLO', { version: 1, nonce: Buffer.alloc(32).toString('base64') }],
  ['ENROL', { token: 'secret', request: 'AAAA' }],
  ['ENROL_REPLY', { status: 'issued', certificate: 'AAAA' }],
  ['ERROR', { code: 'VM_UNKNOWN', message: 'no such VM', hint: 'look' }],
  ['site.state', site],
  ['site.state', { ...site, migrationVersions: { min: 1, max: 2 } }],
  ['migration.progress', { migrationId: id, side: 'source', phase: 'precopy', round: 2, bytesTotal: 1, etaMs: null, extra: { a: [1] } }],
  ['migration.result', { migrationId: id, side: 'target', outcome: 'completed', report, error: { code: 'X', message: 'y' } }],
  ['migration.prepare', { plan, sourceCertificate: 'AAAA' }],
  ['migration.start', { plan, targetCertificate: 'AAAA' }],
  ['migration.cancel', { migrationId: id }],
]

const numberOf = (name: string) => SCHEMAS.findIndex(([other]) => other === name)
const input = (name: string, text: string) => new Uint8Array(Buffer.concat([Uint8Array.of(numberOf(name)), Buffer.from(text)]))
const valid = (name: string) => VALID.find(([other]) => other === name)![1]

export const controlTarget: Target = {
  name: 'control',
  what: 'wire/control.ts: every schema of the hop, by checkJson',
  codes: ['FRAME_MALFORMED'],
  testRuns: 5000,
  jsonAt: 1,
  words: [
    '"__proto__":',
    '"migrationId":',
    'null',
    '1e999',
    '\\u0000',
    '\\ud800',
    '"a":{',
    '[[[[',
    ...SCHEMAS.map((_, i) => Uint8Array.of(i)),
  ],
  seeds: () => VALID.map(([name, value]) => input(name, JSON.stringify(value))),
  hostile: () => ({
    'a list of half a million zeros': input(
      'site.state',
      JSON.stringify({ ...site, vms: 'V' }).replace('"V"', `[${'0,'.repeat(MIB / 2 - 500)}0]`),
    ),
    'half a million ids': input('site.state', JSON.stringify({ ...site, migrations: 'V' }).replace('"V"', `[${'"",'.repeat(MIB / 4)}0]`)),
    'a list of notes': input(
      'migration.result',
      JSON.stringify(valid('migration.result')).replace('"a note"', `${'0,'.repeat(MIB / 2 - 1000)}0`),
    ),
    brackets: input(
      'migration.progress',
      `{"migrationId":"${id}","side":"source","phase":"x","y":${'['.repeat(400_000)}${']'.repeat(400_000)}}`,
    ),
    braces: input(
      'migration.result',
      JSON.stringify(valid('migration.result')).replace('"a note"', `"",${'{"":'.repeat(150_000)}0${'}'.repeat(150_000)}`),
    ),
    'extra fields': input(
      'migration.progress',
      `{"migrationId":"${id}","side":"source","phase":"x"${Array.from({ length: 60_000 }, (_, i) => `,"k${i}":0`).join('')}}`,
    ),
    'extra fields of a plan': input(
      'migration.prepare',
      JSON.stringify({
        plan: { ...plan, ...Object.fromEntries(Array.from({ length: 60_000 }, (_, i) => [`k${i}`, 0])) },
        sourceCertificate: 'AAAA',
      }),
    ),
    'a long string': input('WELCOME', JSON.stringify({ gateway: 'a'.repeat(MIB), site: 'b', version: 'c' })),
    'a long certificate': input('HELLO', JSON.stringify({ ...(valid('HELLO') as object), certificate: 'A'.repeat(MIB) })),
  }),
  run(bytes) {
    const [what, schema] = SCHEMAS[(bytes[0] ?? 0) % SCHEMAS.length]!
    const value = checkJson(schema, bytes.subarray(1), { what })
    demandPlain(value)
    // Accepted values go into the store, to MQTT and to the admin API as JSON.
    const again = check(schema, JSON.parse(JSON.stringify(value)), { what })
    demand(isDeepStrictEqual(again, value), 'what was checked is something else when it is checked again')
  },
}

/** Plain objects and arrays: a peer cannot set a prototype. */
export function demandPlain(value: unknown): void {
  if (typeof value !== 'object' || value === null) return
  const prototype = Object.getPrototypeOf(value)
  demand(
    Array.isArray(value) ? prototype === Array.prototype : prototype === Object.prototype || prototype === null,
    'a prototype from outside',
  )
  for (const inner of Object.values(value)) demandPlain(inner)
}
