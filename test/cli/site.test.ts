// godwit site forget and assign against an admin API that answers as told.
import { run } from '../../cli/run.ts'
import { startHttpServer } from '../../ops/http.ts'
import { EXIT, GodwitError } from '../../wire/errors.ts'
import { silentLog } from '../../wire/log.ts'
import { assert, suite } from '../support/suite.ts'
import { recordingIo } from './recording-io.ts'

const test = suite('cli: site')

async function gateway() {
  const asked: unknown[] = []
  const server = await startHttpServer({
    listen: { host: '127.0.0.1', port: 0 },
    routes: [
      {
        method: 'DELETE',
        path: '/v1/sites/:site',
        handle: ({ params }) => {
          if (params['site'] === 'up') throw new GodwitError('SITE_ONLINE', 'site up is connected')
          return { body: { site: params['site'], vms: ['web-1'], migrations: [] } }
        },
      },
      {
        method: 'PUT',
        path: '/v1/vms/:vm/home',
        handle: async ({ params, json }) => {
          asked.push([params['vm'], await json()])
          return { body: {} }
        },
      },
    ],
    token: 'secret',
    log: silentLog,
  })
  const { address } = server
  const env = { GODWIT_GATEWAY: 'port' in address ? `http://127.0.0.1:${address.port}` : '', GODWIT_TOKEN: 'secret' }
  const godwit = async (...words: string[]) => {
    const io = recordingIo({ env })
    return { code: await run(words, io), stdout: io.stdout, stderr: io.stderr }
  }
  return { asked, godwit, [Symbol.asyncDispose]: () => server.close() }
}

test('a site is forgotten, with what follows from it; one that is connected is not', async () => {
  await using at = await gateway()
  assert.match((await at.godwit('site', 'forget', 'old')).stdout, /removed site old; VMs without a site: web-1; migrations ended: 0/)
  assert.equal(JSON.parse((await at.godwit('site', 'forget', 'old', '--json')).stdout), { site: 'old', vms: ['web-1'], migrations: [] })
  const refused = await at.godwit('site', 'forget', 'up')
  assert.equal([refused.code, /SITE_ONLINE/.test(refused.stderr)], [EXIT.refused, true])
})

test('a VM is assigned to a site', async () => {
  await using at = await gateway()
  assert.equal(JSON.parse((await at.godwit('site', 'assign', 'web-1', 'berlin-1', '--json')).stdout), { vm: 'web-1', site: 'berlin-1' })
  assert.equal(at.asked, [['web-1', { site: 'berlin-1' }]])
  assert.is((await at.godwit('site', 'assign', 'web-1')).code, EXIT.usage)
})

test.run()
