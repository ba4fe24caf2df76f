import { readFile } from 'node:fs/promises'
import { asyncApiDocument, asyncApiText } from '../../mqtt/asyncapi.ts'
import { PATTERNS } from '../../mqtt/topics.ts'
import { assert, suite } from '../support/suite.ts'
import { createChecker } from './asyncapi-checker.ts'

const test = suite('mqtt: AsyncAPI')

test('docs/reference/asyncapi.json is what the schemas say (node bin/run.js scripts/asyncapi.ts writes it)', async () => {
  const committed = await readFile(new URL('../../docs/reference/asyncapi.json', import.meta.url), 'utf8')
  assert.equal(JSON.parse(committed), JSON.parse(asyncApiText()))
})

test('every reference in it leads somewhere, every topic has a channel', () => {
  const document = asyncApiDocument()
  const references = [...JSON.stringify(document).matchAll(/"\$ref":"#\/([^"]+)"/g)].map(match => match[1]!)
  for (const reference of references) {
    let at: unknown = document
    for (const part of reference.split('/')) at = (at as Record<string, unknown> | undefined)?.[part]
    assert.ok(at, reference)
  }
  assert.equal(Object.keys(document['channels'] as object).sort(), Object.keys(PATTERNS).sort())
})

test('the checker that other tests use finds what does not fit', async () => {
  const checker = await createChecker()
  const at = '2026-11-21T10:00:00.000Z'
  checker.check('godwit/v1/x/gateway/gw/state', JSON.stringify({ online: false, timestamp: at, bdSeq: 1 }))
  assert.throws(() => checker.check('godwit/v1/x/gateway/gw/state', JSON.stringify({ online: false, timestamp: at })), /bdSeq/)
  assert.throws(() => checker.check('godwit/v1/x/gateway/gw/state', JSON.stringify({ online: true, timestamp: at, bdSeq: 1 })))
  assert.throws(() => checker.check('godwit/v1/x/other', '{}'), /in no channel/)
})

test.run()
