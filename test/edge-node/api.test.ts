// The node's API over a unix socket, with a registry that answers as told: each answer and each error is what
// docs/reference/openapi-node.json says.
import { once } from 'node:events'
import { join } from 'node:path'
import { type ApiOptions, nodeRoutes } from '../../edge-node/api.ts'
import type { Doubt } from '../../edge-node/doubts.ts'
import type { LocalVmFacts } from '../../edge-node/registry/entry.ts'
import { parseSpec } from '../../edge-node/vm/spec.ts'
import { startHttpServer } from '../../ops/http.ts'
import { type JsonRequest, requestJson, requestUpgrade } from '../../ops/http-client.ts'
import { GodwitError } from '../../wire/errors.ts'
import { silentLog } from '../../wire/log.ts'
import { createApiChecker, readDocument } from '../support/openapi-checker.ts'
import { assert, codeOf, suite, thrown } from '../support/suite.ts'
import { tempFolder } from '../support/temp-folder.ts'

const test = suite('edge-node: API', { ms: 10_000 })

const facts: LocalVmFacts = {
  name: 'web-1',
  state: 'running',
  epoch: 2,
  memoryBytes: 1 << 20,
  vcpus: 1,
  accelerator: 'tcg',
  pid: 7,
  doubt: false,
}
const failed: LocalVmFacts = { ...facts, name: 'web-2', state: 'failed', failure: new GodwitError('QEMU_EXITED').toJSON() }
const doubt: Doubt = {
  ...{ vm: 'web-1', state: 'paused', epoch: 3, why: null, asked: null },
  record: { migrationId: 'c0ffee00'.repeat(4), state: 'RELINQUISHED', epoch: 4, at: 1, target: 'b' },
  fencing: { site: null, vm: 'web-1', epoch: 4, for: 'a' },
  next: ['wait'],
}

function parts(asked: unknown[]): ApiOptions {
  const known = (name: string) => {
    if (name !== 'web-1') throw new GodwitError('VM_UNKNOWN', `no VM ${name}`)
  }
  const order =
    (what: string) =>
    async (name: string, options?: object): Promise<LocalVmFacts> => {
      known(name)
      asked.push([what, { ...options, signal: undefined }])
      return facts
    }
  const registry = {
    list: () => [facts, failed],
    get(name: string) {
      known(name)
      return facts
    },
    spec: () => parseSpec('name: web-1\nmemory: 64MiB\nkernel: vmlinuz\n'),
    create: async (text: string) => ({ ...facts, name: parseSpec(text).name, warnings: ['slow'] }),
    ...{ start: order('start'), stop: order('stop'), wake: order('wake') },
    delete: async (name: string) => known(name),
    console: (name: string) => {
      known(name)
      return { follow: () => Object.assign((async function* () {})(), { close() {} }), write: async () => {} }
    },
    display: (name: string) => {
      known(name)
      return '/run/vnc.sock'
    },
    imports: { list: async () => [], show: async () => Promise.reject(new GodwitError('IMAGE_UNKNOWN')) },
  }
  const control = { rttMs: 1, congestion: undefined }
  const gateway = { selection: { engine: 'quic', tried: [] }, state: 'online', attempts: 1, lastError: null, control, data: [control] }
  const options = {
    registry,
    doubts: { list: async () => [doubt], reclaim: order('reclaim') },
    describe: async () => ({ site: 'a', version: '1', gateway, accelerators: ['tcg'], memoryFreeBytes: 1, diskFreeBytes: 1, vcpus: 1 }),
    metrics: { expose: async () => ({ body: 'godwit 1\n', contentType: 'text/plain' }) },
    predictor: { predict: async () => ({ vm: 'web-1', target: 'b', methods: [], recommended: 'live', reason: 'a test' }) },
  }
  return options as unknown as ApiOptions
}

async function node() {
  const folder = await tempFolder()
  const socketPath = join(folder.path, 'node.sock')
  const asked: unknown[] = []
  const server = await startHttpServer({ listen: { socketPath }, ...nodeRoutes(parts(asked)), log: silentLog })
  const checker = createApiChecker(readDocument('openapi-node.json'))
  const api = async (method: string, path: string, body?: unknown) => {
    const request: JsonRequest = { socketPath, method, path, ...(body === undefined ? {} : { body }) }
    try {
      const answer = await requestJson<Record<string, unknown>>(request)
      checker.answer(method, path, answer)
      return answer
    } catch (error) {
      if (error instanceof GodwitError) checker.error(method, path, error.code)
      throw error
    }
  }
  const dispose = async () => {
    await server.close()
    await folder[Symbol.asyncDispose]()
  }
  return { socketPath, asked, api, checker, [Symbol.asyncDispose]: dispose }
}

test('every answer is what the document says', async () => {
  await using at = await node()
  for (const path of ['/v1/host', '/v1/vms', '/v1/vms/web-1', '/v1/doubts', '/v1/images']) await at.api('GET', path)
  const spec = 'name: web-3\nmemory: 64MiB\nkernel: vmlinuz\n'
  assert.is((await at.api('POST', '/v1/vms', { spec }))['name'], 'web-3')
  await at.api('POST', '/v1/vms/web-1/start')
  await at.api('POST', '/v1/vms/web-1/start', { force: true })
  await at.api('POST', '/v1/vms/web-1/stop', { timeoutMs: 5 })
  await at.api('POST', '/v1/vms/web-1/wake')
  await at.api('POST', '/v1/vms/web-1/reclaim', { fencing: 'AAAA' })
  await at.api('POST', '/v1/vms/web-1/plan', { to: 'b' })
  assert.equal(await at.api('DELETE', '/v1/vms/web-1'), { name: 'web-1', deleted: true })
  assert.equal(JSON.parse(JSON.stringify(at.asked)).slice(0, 3), [
    ['start', { force: false }],
    ['start', { force: true }],
    ['stop', { timeoutMs: 5 }],
  ])
  assert.is(await codeOf(() => at.api('GET', '/v1/vms/web-9')), 'VM_UNKNOWN')
  assert.is(await codeOf(() => at.api('GET', '/v1/images/none')), 'IMAGE_UNKNOWN')
})

test('a wrong body is refused before anything happens, and the message names the field', async () => {
  await using at = await node()
  const wrong: [string, unknown, RegExp][] = [
    ['/v1/vms', { spec: '' }, /^request body: spec: /],
    ['/v1/vms', {}, /^request body: spec: /],
    ['/v1/vms/web-1/stop', { timeout: 5 }, /^request body: .*timeout/],
    ['/v1/vms/web-1/start', { force: 'yes' }, /^request body: force: /],
    ['/v1/vms/web-1/plan', { to: 'UPPER' }, /^request body: to: /],
  ]
  for (const [path, body, message] of wrong) {
    const error = (await thrown(() => at.api('POST', path, body))) as GodwitError
    assert.is(error.code, 'CONFIG_INVALID', path)
    assert.match(error.message, message)
  }
  assert.equal(at.asked, [])
})

test('the display is the path of a socket', async () => {
  await using at = await node()
  assert.equal(await at.api('GET', '/v1/vms/web-1/display'), { name: 'web-1', socket: '/run/vnc.sock' })
  assert.is(await codeOf(() => at.api('GET', '/v1/vms/web-9/display')), 'VM_UNKNOWN')
})

test('the console is a socket of raw bytes', async () => {
  await using at = await node()
  const raw = await requestUpgrade({ socketPath: at.socketPath, path: '/v1/vms/web-1/console?replay=0' })
  raw.resume()
  await once(raw, 'close')
  assert.is(await codeOf(() => requestUpgrade({ socketPath: at.socketPath, path: '/v1/vms/web-9/console' })), 'VM_UNKNOWN')
})

test.run()
