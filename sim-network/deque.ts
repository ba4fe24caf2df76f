// A queue, first in, first out: amortised O(1), memory proportional to its content.

type Deque<T> = { readonly length: number; first(): T | undefined; push(item: T): void; shift(): T | undefined; clear(): T[] }

const COMPACT_AT = 1024

export function createDeque<T>(): Deque<T> {
  let items: (T | undefined)[] = []
  let head = 0
  return {
    get length() {
      return items.length - head
    },
    first: () => items[head],
    push: item => void items.push(item),
    shift: () => {
      if (head === items.length) return undefined
      const item = items[head]
      items[head++] = undefined
      if (head === items.length || (head >= COMPACT_AT && head * 2 >= items.length)) {
        items = items.slice(head)
        head = 0
      }
      return item
    },
    clear: () => {
      const rest = items.slice(head) as T[]
      items = []
      head = 0
      return rest
    },
  }
}
