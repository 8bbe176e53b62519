# SPDX-License-Identifier: Apache-2.0
"""Hugging Face model folders: conversion from GGUF, and padding of KV groups.

torch and transformers are imported inside the functions that need them, never by importing this package.
"""
