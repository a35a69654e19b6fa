//! A pickle's objects, as far as they describe tensors: the program is followed, and nothing is executed.
//!
//! A pickle is a program for a stack machine that builds Python objects. Protocols 1 to 5 are read. Whatever describes no
//! tensor (optimisers, hyperparameters) becomes an empty object. Objects lie in one list and refer to each other by their
//! place in it, and texts are borrowed from the program: an opcode makes one object at most, so that the memory is bounded by
//! a small multiple of the program's length, whatever the program claims, repeats or nests.

use anyhow::{Context, Result, bail, ensure};
use std::collections::HashMap;

/// The place of an object.
pub type Id = u32;

/// What stands on the stack where a group of objects begins.
const MARK: Id = Id::MAX;

/// An object of a pickle.
#[derive(Debug)]
pub enum Object<'a> {
    /// A class or a function, by its module and its name.
    Class(&'a str, &'a str),
    /// A whole number.
    Int(i64),
    /// A text.
    Text(&'a str),
    /// Objects in order.
    Tuple(Vec<Id>),
    /// Keys and values, in the order in which they were set.
    Dict(Vec<(Id, Id)>),
    /// What a function would give for these arguments.
    Call(Id, Id),
    /// What lies outside of the pickle under this key.
    Stored(Id),
    /// Anything else.
    Other,
}

/// A pickle that has been read.
pub struct Pickle<'a> {
    /// The part of the program that has not been run.
    rest: &'a [u8],
    objects: Vec<Object<'a>>,
    stack: Vec<Id>,
    memo: HashMap<u32, Id>,
}

impl<'a> Pickle<'a> {
    /// Reads a program; with the object that it leaves.
    ///
    /// # Errors
    /// When it ends early, takes what is not there, or has an opcode that torch.save does not write.
    pub fn parse(program: &'a [u8]) -> Result<(Self, Id)> {
        let mut pickle = Self { rest: program, objects: Vec::new(), stack: Vec::new(), memo: HashMap::new() };
        loop {
            let opcode = pickle.take(1)?[0];
            if opcode == b'.' {
                let whole = pickle.pop()?;
                return Ok((pickle, whole));
            }
            if let Some(object) = pickle.step(opcode)? {
                let id = Id::try_from(pickle.objects.len()).ok().filter(|&id| id != MARK);
                pickle.stack.push(id.context("the pickle has too many objects")?);
                pickle.objects.push(object);
            }
        }
    }

    /// The object at a place.
    pub fn get(&self, id: Id) -> &Object<'a> {
        &self.objects[id as usize]
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(n).context("the pickle ends inside an object")?;
        self.rest = rest;
        Ok(bytes)
    }

    /// An unsigned number of `n` bytes, at most eight.
    fn number(&mut self, n: usize) -> Result<u64> {
        Ok(self.take(n)?.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte)))
    }

    /// As many bytes as a number of `n` bytes says.
    fn counted(&mut self, n: usize) -> Result<&'a [u8]> {
        let length = self.number(n)?;
        self.take(usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn text(&mut self, n: usize) -> Result<Object<'a>> {
        // A text that is none names no tensor.
        Ok(std::str::from_utf8(self.counted(n)?).map_or(Object::Other, Object::Text))
    }

    fn line(&mut self) -> Result<&'a str> {
        let end = self.rest.iter().position(|&byte| byte == b'\n');
        let line = self.take(end.context("the pickle ends inside an object")? + 1)?;
        Ok(std::str::from_utf8(&line[..line.len() - 1])?.trim_end_matches('\r'))
    }

    fn top(&self) -> Result<Id> {
        let top = self.stack.last().copied().filter(|&id| id != MARK);
        top.context("the pickle takes an object where there is none")
    }

    fn pop(&mut self) -> Result<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.stack.iter().rposition(|&id| id == MARK);
        let objects = self.stack.split_off(mark.context("the pickle has no mark to go back to")? + 1);
        self.stack.pop();
        Ok(objects)
    }

    fn tuple(&mut self, n: usize) -> Result<Object<'a>> {
        let mut parts = (0..n).map(|_| self.pop()).collect::<Result<Vec<_>>>()?;
        parts.reverse();
        Ok(Object::Tuple(parts))
    }

    /// Sets entries of the dictionary on top; those of anything else are dropped.
    fn set(&mut self, items: &[Id]) -> Result<()> {
        ensure!(items.len().is_multiple_of(2), "the pickle sets a key without a value");
        let top = self.top()?;
        if let Object::Dict(entries) = &mut self.objects[top as usize] {
            entries.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
        }
        Ok(())
    }

    fn remember(&mut self, id: u64) -> Result<()> {
        let top = self.top()?;
        self.memo.insert(u32::try_from(id)?, top);
        Ok(())
    }

    fn recall(&mut self, bytes: usize) -> Result<()> {
        let id = self.number(bytes)?;
        let known = u32::try_from(id).ok().and_then(|id| self.memo.get(&id));
        self.stack.push(*known.context("the pickle recalls what it never met")?);
        Ok(())
    }

    /// Runs one opcode other than the last: the object that it makes, if it does.
    fn step(&mut self, opcode: u8) -> Result<Option<Object<'a>>> {
        match opcode {
            // The protocol, and the length of a frame: neither changes what follows.
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            b'q' | b'r' => {
                let id = self.number(if opcode == b'q' { 1 } else { 4 })?;
                self.remember(id)?;
            }
            0x94 => self.remember(self.memo.len() as u64)?,
            b'h' => self.recall(1)?,
            b'j' => self.recall(4)?,
            b'(' => self.stack.push(MARK),
            b'0' => drop(self.stack.pop()),
            b'1' => drop(self.pop_to_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            // What is appended, added or set as a state is no tensor of a state_dict.
            b'a' | b'b' => {
                self.pop()?;
                self.top()?;
            }
            b'e' | 0x90 => drop(self.pop_to_mark()?),
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set(&items)?;
            }
            _ => return self.object(opcode).map(Some),
        }
        Ok(None)
    }

    /// The object that an opcode makes.
    fn object(&mut self, opcode: u8) -> Result<Object<'a>> {
        Ok(match opcode {
            b'K' => Object::Int(self.number(1)? as i64),
            b'M' => Object::Int(self.number(2)? as i64),
            b'J' => Object::Int(i64::from(self.number(4)? as u32 as i32)),
            0x8a => signed(self.counted(1)?),
            0x8b => signed(self.counted(4)?),
            b'I' | b'L' => self.line()?.trim_end_matches('L').parse().map_or(Object::Other, Object::Int),
            b'X' => self.text(4)?,
            0x8c => self.text(1)?,
            0x8d => self.text(8)?,
            b'c' => Object::Class(self.line()?, self.line()?),
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Object::Text(module), Object::Text(name)) = (self.get(module), self.get(name)) else {
                    bail!("the pickle names a class by what is no text")
                };
                Object::Class(module, name)
            }
            b')' => Object::Tuple(Vec::new()),
            b't' => Object::Tuple(self.pop_to_mark()?),
            0x85 => self.tuple(1)?,
            0x86 => self.tuple(2)?,
            0x87 => self.tuple(3)?,
            b'}' => Object::Dict(Vec::new()),
            b'd' => {
                let items = self.pop_to_mark()?;
                ensure!(items.len().is_multiple_of(2), "the pickle sets a key without a value");
                Object::Dict(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
            }
            b'Q' => Object::Stored(self.pop()?),
            b'R' | 0x81 => {
                let (args, callable) = (self.pop()?, self.pop()?);
                match self.get(callable) {
                    Object::Class("collections", "OrderedDict" | "defaultdict") => Object::Dict(Vec::new()),
                    _ => Object::Call(callable, args),
                }
            }
            0x92 => {
                self.tuple(3)?;
                Object::Other
            }
            b'l' | 0x91 => {
                self.pop_to_mark()?;
                Object::Other
            }
            b'N' | 0x88 | 0x89 | b']' | 0x8f => Object::Other,
            b'G' => self.take(8).map(|_| Object::Other)?,
            b'C' | b'U' => self.counted(1).map(|_| Object::Other)?,
            b'B' | b'T' => self.counted(4).map(|_| Object::Other)?,
            0x8e | 0x96 => self.counted(8).map(|_| Object::Other)?,
            b'F' => self.line().map(|_| Object::Other)?,
            other => bail!("the pickle uses the opcode {other:#04x}, which torch.save does not write"),
        })
    }
}

/// A number in two's complement; one of more than eight bytes is no size.
fn signed<'a>(bytes: &[u8]) -> Object<'a> {
    let fill = if bytes.last().is_some_and(|&byte| byte >= 0x80) { 0xff } else { 0 };
    let mut all = [fill; 8];
    let Some(part) = all.get_mut(..bytes.len()) else { return Object::Other };
    part.copy_from_slice(bytes);
    Object::Int(i64::from_le_bytes(all))
}
