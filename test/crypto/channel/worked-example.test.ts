// The worked example is a vector: the code must give what test/vectors/worked-example.json says, and
// docs/reference/protocol.md must show the same.
import { readFileSync } from 'node:fs'
import { loadSodium } from '../../../crypto/sodium.ts'
import { workedExample } from '../../support/crypto-example.ts'
import { assert, suite } from '../../support/suite.ts'

const test = suite('crypto/worked-example')
await loadSodium()

const read = (path: string) => readFileSync(new URL(path, import.meta.url), 'utf8')

test('the code gives the checked-in example', () => {
  assert.equal(workedExample(), JSON.parse(read('../../vectors/worked-example.json')))
})

test('docs/reference/protocol.md shows values of the example: whole, or as first 32 and last 16 bytes', () => {
  const example: Record<string, string> = JSON.parse(read('../../vectors/worked-example.json'))
  const lines = [...read('../../../docs/reference/protocol.md').matchAll(/^([a-zA-Z0-9.]+) +(\d+)? *([0-9a-z.-]+)$/gm)].filter(
    match => match[1]! in example,
  )
  const shown = new Map(lines.map(match => [match[1]!, match]))
  for (const [name, value] of Object.entries(example)) {
    const [, , bytes, text] = shown.get(name) ?? []
    assert.ok(text, `docs/reference/protocol.md does not show ${name}`)
    if (bytes !== undefined) assert.is(Number(bytes), value.length / 2, `length of ${name}`)
    const short = `${value.slice(0, 64)}...${value.slice(-32)}`
    assert.ok(text === value || (value.length > 128 && text === short), `docs/reference/protocol.md shows another ${name}`)
  }
})

test.run()
